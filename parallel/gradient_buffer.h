// GradientBuffer: gradients of all parameters in buckets, reduced over the data-parallel ranks
// while the backward still runs (ZeRO stage 1: each rank ends with the sum of its shard only).
#pragma once

#include <utility>
#include <vector>

#include "parallel/parameter.h"
#include "parallel/process_group.h"

namespace phalanx {

/// One contiguous range of the flat blocks and how the data-parallel ranks share it.
struct Bucket {
  int64_t begin = 0;  // flat element
  int64_t end = 0;
  int64_t first_parameter = 0;  // parameters [first, last) lie in it
  int64_t last_parameter = 0;
  std::vector<int64_t> counts;  // elements per rank; cut at whole rows of a parameter
};

/// Cuts `store` into buckets of at least `bucket_size` elements (whole parameters, registration
/// order) and each bucket over `num_ranks` at row boundaries, as evenly as rows allow: every
/// rank's shard of a parameter is one rectangle of its global tensor. Pure function.
std::vector<Bucket> make_buckets(const ParameterStore& store, int64_t bucket_size, int num_ranks);

/// Borrows the store's gradient block. All reductions are sums.
class GradientBuffer {
 public:
  struct Options {
    int64_t bucket_size = 10'000'000;
    bool overlap = true;
    /// Needed only if a parameter's gradient is partial over tp too (norms under sequence
    /// parallel): that sum runs before the bucket's reduction starts.
    ProcessGroup* tp = nullptr;
  };
  GradientBuffer(ParameterStore& store, Backend& backend, ProcessGroup& dp_cp,
                 const Options& options);

  void zero();
  /// Gradients of parameters with index >= `first_parameter` are final: starts the reduction of
  /// the buckets that are complete by now. The backward runs through the parameters in reverse
  /// registration order, so one number is enough.
  void final_from(int64_t first_parameter);
  /// Starts what has not started and waits for everything.
  void finish_sync();

  const std::vector<Bucket>& buckets() const { return buckets_; }
  /// Flat element range [begin, end) of this rank's shard of bucket `index`.
  std::pair<int64_t, int64_t> shard_range(size_t index) const;

 private:
  void start_bucket(size_t index);

  ParameterStore& store_;
  Backend& ops_;
  ProcessGroup& dp_cp_;
  Options options_;
  std::vector<Bucket> buckets_;
  std::vector<PendingWork> pending_;  // one per bucket, null until started
  size_t not_started_ = 0;            // buckets [0, not_started_) wait for their gradients
};

}  // namespace phalanx
