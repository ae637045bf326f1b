// Linear layers cut over tensor-parallel ranks (Shoeybi et al. 2019, Megatron-LM): column-parallel
// cuts the outputs, row-parallel the inputs, so that the pair needs one conjugate pair of
// collectives per direction. With sequence parallel (Korthikanti et al. 2022) rows outside the
// pair are cut over tp too.
#pragma once

#include <string>
#include <vector>

#include "kernels/base/arena.h"
#include "parallel/parameter.h"
#include "parallel/process_group.h"

namespace phalanx {

/// Whether rows outside tensor-parallel regions are replicated or cut over tp.
enum class SequenceParallel : uint8_t { off, on };

/// What every parallel layer is built with: where its weights register, what computes, which group.
struct TensorParallelContext {
  ParameterStore& parameters;
  Backend& backend;
  ProcessGroup& tp;
  SequenceParallel sequence_parallel = SequenceParallel::off;

  /// Rows inside tensor-parallel regions per row outside: tp with sequence parallel, else 1.
  int64_t row_factor() const { return sequence_parallel == SequenceParallel::on ? tp.size() : 1; }
};

/// Placement of a replicated weight that works on rows outside the regions. With sequence parallel
/// every tp rank sees other rows, so its gradient is a part of the sum.
Placement row_wise_placement(const TensorParallelContext& context);

/// The context's mode, off in a group of one: there rows cut over tp are all rows, and gathering
/// them would only copy.
SequenceParallel effective_sequence_parallel(const TensorParallelContext& context);

/// One named weight of a linear layer with several outputs ("q", "k", "v").
struct LinearPart {
  std::string name;      // full key: "layers.00.attention.q.weight"
  int64_t out_features;  // global
  int tp_replicas = 1;   // consecutive tp ranks that hold the same rows
};

/// Consecutive parts of a linear layer.
struct PartRange {
  int64_t first = 0;
  int64_t count = 0;
};

/// y = x [W_0; W_1; ...]^T, every part cut by rows over tp; all local pieces are adjacent in
/// memory, so one product serves them.
class ColumnParallelLinear {
 public:
  struct Saved {
    Tensor x;  // [rows(/tp), in]: the input as handed in
  };
  struct Init {
    int64_t in_features;
    ParameterKind kind;
    Initialiser initialiser;
  };
  ColumnParallelLinear(const TensorParallelContext& context, const std::vector<LinearPart>& parts,
                       const Init& init);

  PartRange all_parts() const { return {0, static_cast<int64_t>(parameters_.size())}; }
  /// Local output columns of these parts.
  int64_t local_out_features(PartRange parts) const;

  /// y [rows, local_out_features(parts)] = x [rows(/tp with sequence parallel), in] times `parts`.
  void forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory,
               PartRange parts) const;
  /// dx as x, the full sum over tp; dy [rows, local_out_features(parts)]. Weight gradients add up,
  /// or wait in memory.deferred.
  void backward(const Tensor& dx, const Tensor& dy, const Saved& saved, Memory& memory,
                PartRange parts);

 private:
  const Parameter& first_of(PartRange parts) const;
  void weight_gradient(const Tensor& dweight, const Tensor& dy, const Tensor& x, Memory& memory);

  ParameterStore& store_;
  Backend& ops_;
  ProcessGroup& tp_;
  SequenceParallel sequence_parallel_;
  std::vector<Parameter*> parameters_;
};

/// y = x W^T with W cut by columns over tp: x is already local, y is summed over tp.
class RowParallelLinear {
 public:
  struct Saved {
    Tensor x;  // [rows, in/tp]
  };
  struct Init {
    int64_t in_features;  // global
    int64_t out_features;
    ParameterKind kind;
    Initialiser initialiser;
  };
  RowParallelLinear(const TensorParallelContext& context, const std::string& name,
                    const Init& init);

  /// y [rows(/tp with sequence parallel), out] = sum over tp of x [rows, in/tp] W^T.
  void forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory) const;
  /// dx [rows, in/tp], dy as y.
  void backward(const Tensor& dx, const Tensor& dy, const Saved& saved, Memory& memory);

 private:
  Backend& ops_;
  ProcessGroup& tp_;
  SequenceParallel sequence_parallel_;
  Parameter* weight_;
};

}  // namespace phalanx
