// GradientBuffer: gradients of all parameters in buckets, reduced over the data-parallel ranks
// while the backward still runs (ZeRO stage 1: each rank ends with the sum of its shard only).
#pragma once

#include <utility>
#include <vector>

#include "parallel/gradient_sum.h"
#include "parallel/parameter.h"
#include "parallel/process_groups.h"

namespace phalanx {

/// Sizes of the two groups that reduce gradients.
struct ReducingRanks {
  int dp_cp = 1;
  int expert_dp = 1;
};
ReducingRanks reducing_ranks(const ProcessGroups& groups);

/// One contiguous range of the flat blocks and how the ranks that reduce it share it.
struct Bucket {
  int64_t begin = 0;  // flat element
  int64_t end = 0;
  int64_t first_parameter = 0;  // parameters [first, last) lie in it
  int64_t last_parameter = 0;
  bool expert = false;            // reduced over expert_dp, not over dp x cp
  bool shared_by_stages = false;  // another pipeline stage adds to it, after its own backwards
  std::vector<int64_t> counts{};  // elements per rank; cut at whole rows of a parameter
};

/// Cuts `store` into buckets of at least `bucket_size` elements (whole parameters, registration
/// order; fewer elements where the reducing group changes) and each bucket over its group's ranks
/// at row boundaries, as evenly as rows allow: every rank's shard of a parameter is one rectangle
/// of its global tensor. Pure function.
std::vector<Bucket> make_buckets(const ParameterStore& store, int64_t bucket_size,
                                 const ReducingRanks& ranks);

/// Borrows the store's gradient block. All reductions are sums.
class GradientBuffer {
 public:
  struct Options {
    int64_t bucket_size = 10'000'000;
    bool overlap = true;
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

  const std::vector<Bucket>& buckets() const { return buckets_; }
  /// The ranks that share `bucket`.
  ProcessGroup& group_of(const Bucket& bucket) const {
    return bucket.expert ? *groups_.expert_dp : *groups_.dp_cp;
  }
  /// Flat element range [begin, end) of this rank's shard of bucket `index`.
  std::pair<int64_t, int64_t> shard_range(size_t index) const;

 private:
  void start_bucket(size_t index);
  void sum_partial_gradients(const Bucket& bucket);

  ParameterStore& store_;
  Backend& ops_;
  ProcessGroups& groups_;
  GradientSum gradient_sum_;
  Options options_;
  std::vector<Bucket> buckets_;
  std::vector<PendingWork> pending_;  // one per bucket, null until started
  std::vector<char> started_;
  size_t not_final_ = 0;  // buckets [0, not_final_) wait for their gradients
};

}  // namespace phalanx
