// Bucket: a contiguous run of parameters whose gradients are reduced, and whose optimizer state is
// cut, together.
#pragma once

#include <utility>
#include <vector>

#include "parallel/parameter.h"
#include "parallel/process_groups.h"

namespace phalanx {

struct Bucket {
  int64_t begin = 0;  // flat element
  int64_t end = 0;
  int64_t first_parameter = 0;  // parameters [first, last) lie in it
  int64_t last_parameter = 0;
  bool expert = false;            // reduced over expert_dp, not over dp x cp
  bool shared_by_stages = false;  // another pipeline stage adds to it, after its own backwards
  int64_t unit = -1;              // the sharded unit it belongs to; -1: none
  std::vector<int64_t> counts{};  // elements per rank; cut at whole rows of a parameter

  int64_t numel() const { return end - begin; }
  /// Flat elements [begin, end) of the shard of rank `rank`.
  std::pair<int64_t, int64_t> shard(int rank) const;
};

/// The ranks that reduce and share `bucket`.
ProcessGroup& group_of(const Bucket& bucket, const ProcessGroups& groups);

/// How `make_buckets` cuts.
struct BucketRules {
  int64_t bucket_size = 10'000'000;  // elements at least, where the reducing group allows
  int dp_cp = 1;                     // ranks
  int expert_dp = 1;
  std::vector<ParameterRange> units{};  // each in buckets of its own; ascending
};
BucketRules bucket_rules(const ProcessGroups& groups, int64_t bucket_size,
                         const std::vector<ParameterRange>& units = {});

/// Cuts `store` into buckets of whole parameters in registration order (a new one where the
/// reducing group or the unit changes) and each bucket over its group's ranks at row boundaries, as
/// evenly as rows allow: every rank's shard of a parameter is one rectangle of its global tensor.
/// Pure function.
std::vector<Bucket> make_buckets(const ParameterStore& store, const BucketRules& rules);

}  // namespace phalanx
