// Parameter and ParameterStore: every weight of this rank, registered in forward order, laid out
// back to back in one block (values) and one block (gradients).
#pragma once

#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "kernels/backend.h"
#include "parallel/placement.h"

namespace phalanx {

/// What a parameter is, for weight decay and for the table of `phalanx info`.
enum class ParameterKind : uint8_t {
  embedding,
  head,
  attention,
  feed_forward,
  norm,
  router,
  expert
};

/// Starting values: `stddev` 0 means the constant, else a normal cut at +-3 stddev.
struct Initialiser {
  double stddev = 0.0;
  double constant = 1.0;
};

struct ParameterSpec {
  std::string name;    // mesh-independent key, e.g. "layers.03.mlp.gate.weight"
  Shape global_shape;  // 1-D or 2-D [out, in]
  ParameterKind kind = ParameterKind::norm;
  Placement placement;
  Initialiser initialiser;
};

/// This rank's piece. The piece is the rectangle at `offset` of the global tensor.
struct Parameter {
  ParameterSpec spec;
  Shape shape;                      // local
  std::array<int64_t, 2> offset{};  // first local row and column in the global tensor
  int64_t index = 0;                // place in the store (registration order)
  int64_t flat_offset = 0;          // first element in the flat blocks
  Tensor value;                     // compute dtype
  Tensor gradient;                  // f32 (f64 when the compute dtype is)

  int64_t numel() const { return shape.numel(); }
  /// [rows, columns]; a vector is a matrix of one column, so that its pieces are rectangles too.
  Shape matrix_shape() const { return {shape[0], shape.rank() == 2 ? shape[1] : 1}; }
};

/// Draws `rows` [n, columns], local rows from `row_begin` on of `parameter`, from (seed, name,
/// global element index): the same bits whoever draws them. Any floating dtype.
void initialise_rows(Backend& backend, const Parameter& parameter, int64_t row_begin,
                     const Tensor& rows, uint64_t seed);

/// Parameters [first, last) of a store that come and go together: one layer (ZeRO stage 3).
struct ParameterRange {
  int64_t first = 0;
  int64_t last = 0;
};

/// Owns the parameters of this rank. First layers register (no memory yet, so `phalanx info` can
/// count any model), then `allocate` takes the blocks, then `initialise` draws the weights.
class ParameterStore {
 public:
  /// Registers the piece of `spec` with `rank` of `size` on the one axis that cuts it (rank 0 of 1
  /// if none does). Throws if the size does not divide the cut dim. The reference stays valid.
  Parameter& add(const ParameterSpec& spec, int rank = 0, int size = 1);

  /// Takes both blocks from the backend and points every parameter into them, but those of `units`
  /// (ascending), which have memory only between `place_...` calls.
  void allocate(Backend& backend, DType compute_dtype,
                const std::vector<ParameterRange>& units = {});
  /// Points the parameters of `unit` one after the other into `block` [elements of the unit];
  /// nowhere if it is absent.
  void place_values(const ParameterRange& unit, const Tensor& block);
  void place_gradients(const ParameterRange& unit, const Tensor& block);
  /// Draws every weight from (seed, name, global element index).
  void initialise(Backend& backend, uint64_t seed);

  int64_t size() const { return static_cast<int64_t>(parameters_.size()); }
  Parameter& operator[](int64_t index) { return *parameters_[static_cast<size_t>(index)]; }
  const Parameter& operator[](int64_t index) const {
    return *parameters_[static_cast<size_t>(index)];
  }
  int64_t numel() const { return numel_; }
  DType dtype() const { return values_.dtype; }
  /// Flat elements [begin, end), of parameters that are adjacent in memory: [end - begin] of the
  /// compute dtype, or of the accumulator's.
  Tensor values(int64_t begin, int64_t end) const;
  Tensor gradients(int64_t begin, int64_t end) const;
  /// Everything, without units.
  Tensor flat_value() const { return values(0, numel_); }
  Tensor flat_gradient() const { return gradients(0, numel_); }
  /// Zeroes what does not belong to units.
  void zero_gradients(Backend& backend) { backend.zero(gradients_); }
  /// Rows [first.out + second.out + ..., in] of parameters registered one after the other: one
  /// matrix for one product. `count` parameters from `first` on.
  Tensor fused_value(const Parameter& first, int64_t count) const;
  Tensor fused_gradient(const Parameter& first, int64_t count) const;

 private:
  void place(const ParameterRange& unit, Tensor Parameter::*part, const Tensor& all,
             const Tensor& block);
  void check_adjacent(const Parameter& first, int64_t end) const;
  const Parameter& holder_of(int64_t begin, int64_t end) const;

  std::vector<std::unique_ptr<Parameter>> parameters_;
  std::unordered_set<std::string> names_;
  int64_t numel_ = 0;
  std::shared_ptr<void> value_block_;
  std::shared_ptr<void> gradient_block_;
  Tensor values_;     // all but units, one parameter after the other
  Tensor gradients_;  // the same
};

}  // namespace phalanx
