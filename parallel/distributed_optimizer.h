// DistributedOptimizer: AdamW with state sharded over the data-parallel ranks (Rajbhandari et al.
// 2020, ZeRO stage 1). Each rank updates its shard of every bucket, then shards are gathered.
#pragma once

#include <memory>
#include <vector>

#include "parallel/gradient_buffer.h"
#include "parallel/optimizer_config.h"
#include "parallel/piece_table.h"
#include "parallel/process_groups.h"

namespace phalanx {

/// One rank's rectangle of one parameter inside its optimizer shard: whole rows. Name of what a
/// checkpoint writes.
struct OptimizerShard {
  const Parameter* parameter;
  int64_t row_begin;  // local rows of the parameter
  int64_t row_end;
  Tensor weights;                      // compute dtype; [rows, columns] as all here
  Tensor gradient;                     // reduced, after finish_sync
  Tensor master, exp_avg, exp_avg_sq;  // views
};

/// The rectangle of the global tensor that it is.
Piece piece_of(const OptimizerShard& shard);
std::vector<Piece> pieces_of(const std::vector<OptimizerShard>& shards);

class DistributedOptimizer {
 public:
  DistributedOptimizer(ParameterStore& store, GradientBuffer& gradients, Backend& backend,
                       const ProcessGroups& groups, const OptimizerConfig& config);

  /// Copies the current weights into the f32 masters (bf16 compute only; otherwise the weights are
  /// the masters). With `exact` initial values drawn in f32 use `initialise_masters`.
  void copy_masters_from_parameters();
  /// The other way: rounds the masters into the compute weights of this rank's shards;
  /// GradientBuffer::gather_weights then gives them to every rank.
  void copy_parameters_from_masters();
  /// Draws masters at full precision from (seed, name, global index) and rounds them into the
  /// compute weights of the shard; then gathers. Weights are the same bits for every mesh.
  void initialise(uint64_t seed);

  /// L2 norm of the whole model's gradient, each element once; call after finish_sync.
  double gradient_norm();
  /// One AdamW update of this rank's shards with gradients scaled by `gradient_scale`;
  /// GradientBuffer::gather_weights then gives them to every rank.
  void step(double learning_rate, double gradient_scale);
  int64_t num_steps() const { return num_steps_; }
  /// Continues the bias correction of a loaded state.
  void set_num_steps(int64_t num_steps) { num_steps_ = num_steps; }
  /// Bytes of masters and moments on this rank.
  int64_t state_bytes() const;
  const std::vector<OptimizerShard>& shards() const { return shards_; }

 private:
  /// Adjacent shards that are updated and counted alike: one op for all of them.
  struct Span {
    AdamWTensors tensors;
    double weight_decay;
    bool counted;  // this rank adds it to the gradient norm
  };
  void allocate_state();
  void add_shards(size_t index, int64_t state_begin);
  AdamWTensors tensors_of(size_t bucket, int64_t state_begin, int64_t first, int64_t last) const;
  double weight_decay_of(ParameterKind kind) const;
  bool counts_in_norm(const Parameter& parameter) const;

  ParameterStore& store_;
  GradientBuffer& gradients_;
  Backend& ops_;
  const ProcessGroups& groups_;
  OptimizerConfig config_;
  int64_t num_steps_ = 0;
  bool masters_are_weights_;
  int64_t state_numel_ = 0;  // elements of this rank's shards, bucket after bucket
  std::vector<std::shared_ptr<void>> blocks_;
  Tensor master_, exp_avg_, exp_avg_sq_;  // [state_numel_]; master_ absent if the weights are it
  Tensor squares_;                        // [1] f64
  std::vector<OptimizerShard> shards_;
  std::vector<Span> spans_;
};

/// The factor that brings a gradient of norm `norm` down to at most `clip` (1 if clip is 0).
double clip_factor(double norm, double clip);

}  // namespace phalanx
