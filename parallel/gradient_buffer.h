// GradientBuffer: gradients of all parameters in buckets, reduced over the data-parallel ranks
// while the backward still runs. Each rank ends with the sum of its shard only (ZeRO stage 1), and
// of units neither whole weights nor whole gradients outlive their layer (ZeRO stage 3).
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "parallel/parameter_units.h"

namespace phalanx {

/// Borrows the store's blocks. All reductions are sums.
class GradientBuffer {
 public:
  struct Options {
    int64_t bucket_size = 10'000'000;
    bool overlap = true;
    std::vector<ParameterRange> units{};  // the store was allocated without these
  };
  /// Talks to dp_cp and expert_dp; to tp for gradients that are partial there too (norms under
  /// sequence parallel, replicated key-value heads) and to pp for tied embeddings.
  GradientBuffer(ParameterStore& store, Backend& backend, ProcessGroups& groups,
                 const Options& options);

  void zero();
  /// Gradients of parameters with index >= `first_parameter` are final: starts the reduction of
  /// the buckets that are complete by now. The backward runs through the parameters in reverse
  /// registration order, so one number is enough.
  void final_from(int64_t first_parameter);
  /// Starts what has not started and waits for everything.
  void finish_sync();
  /// Gives every rank all weights after their shards have changed; those of units later, when they
  /// run.
  void gather_weights();
  /// What a stage calls around its layers.
  ParameterUnits& units();

  const std::vector<Bucket>& buckets() const { return buckets_; }
  /// Flat element range [begin, end) of this rank's shard of bucket `index`, and the shard itself.
  std::pair<int64_t, int64_t> shard_range(size_t index) const;
  Tensor value_shard(size_t index) const;
  Tensor gradient_shard(size_t index) const;

 private:
  void start_bucket(size_t index);

  ParameterStore& store_;
  Backend& ops_;
  ProcessGroups& groups_;
  PartialGradients partial_;
  Options options_;
  std::vector<Bucket> buckets_;
  std::vector<PendingWork> pending_;  // one per bucket, null until started
  std::vector<char> started_;
  size_t not_final_ = 0;  // buckets [0, not_final_) wait for their gradients
  ParameterUnits resident_;
  std::unique_ptr<ShardedUnits> sharded_;  // absent without units
};

}  // namespace phalanx
