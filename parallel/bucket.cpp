// Which parameters share a bucket, and where ranks cut it.
#include "parallel/bucket.h"

#include <algorithm>
#include <numeric>

namespace phalanx {
namespace {

/// The row boundary of the bucket's parameters nearest to flat element `wanted`.
int64_t nearest_row_boundary(const ParameterStore& store, const Bucket& bucket, int64_t wanted) {
  for (int64_t i = bucket.first_parameter; i < bucket.last_parameter; ++i) {
    const Parameter& parameter = store[i];
    if (wanted > parameter.flat_offset + parameter.numel()) continue;
    const int64_t columns = parameter.matrix_shape()[1];
    const int64_t row = (wanted - parameter.flat_offset + columns / 2) / columns;
    return parameter.flat_offset + std::min(row, parameter.shape[0]) * columns;
  }
  return bucket.end;
}

void cut_bucket(const ParameterStore& store, int num_ranks, Bucket& bucket) {
  const int64_t total = bucket.end - bucket.begin;
  int64_t previous = bucket.begin;
  for (int rank = 1; rank <= num_ranks; ++rank) {
    // Split so that the product of elements and ranks stays far inside int64.
    const int64_t wanted =
        bucket.begin + total / num_ranks * rank + total % num_ranks * rank / num_ranks;
    const int64_t cut =
        rank == num_ranks ? bucket.end : nearest_row_boundary(store, bucket, wanted);
    bucket.counts.push_back(cut - previous);
    previous = cut;
  }
}

/// The unit that holds parameter `index`, or -1.
int64_t unit_of(const std::vector<ParameterRange>& units, int64_t index) {
  const auto after = std::upper_bound(
      units.begin(), units.end(), index,
      [](int64_t wanted, const ParameterRange& unit) { return wanted < unit.last; });
  return after != units.end() && after->first <= index ? after - units.begin() : -1;
}

bool together(const Bucket& bucket, const Placement& placement, int64_t unit) {
  return bucket.expert == placement.is_expert() && bucket.unit == unit &&
         bucket.shared_by_stages == placement.is_shared_by_stages();
}

/// What is left over joins the bucket before it, so that no bucket is too small to be worth a
/// message.
void merge_last(std::vector<Bucket>& buckets, int64_t bucket_size) {
  if (buckets.size() < 2 || buckets.back().numel() >= bucket_size) return;
  Bucket& target = buckets[buckets.size() - 2];
  const Bucket& last = buckets.back();
  if (target.expert != last.expert || target.shared_by_stages != last.shared_by_stages ||
      target.unit >= 0 || last.unit >= 0)
    return;
  target.end = last.end;
  target.last_parameter = last.last_parameter;
  buckets.pop_back();
}

}  // namespace

std::pair<int64_t, int64_t> Bucket::shard(int rank) const {
  const auto own = counts.begin() + rank;
  const int64_t first = std::accumulate(counts.begin(), own, begin);
  return {first, first + *own};
}

ProcessGroup& group_of(const Bucket& bucket, const ProcessGroups& groups) {
  return bucket.expert ? *groups.expert_dp : *groups.dp_cp;
}

BucketRules bucket_rules(const ProcessGroups& groups, int64_t bucket_size,
                         const std::vector<ParameterRange>& units) {
  return {.bucket_size = bucket_size,
          .dp_cp = groups.dp_cp->size(),
          .expert_dp = groups.expert_dp->size(),
          .units = units};
}

std::vector<Bucket> make_buckets(const ParameterStore& store, const BucketRules& rules) {
  check(rules.bucket_size >= 1, "ddp-bucket-size ", rules.bucket_size, " is below 1; nearest is 1");
  std::vector<Bucket> buckets;
  for (int64_t i = 0; i < store.size(); ++i) {
    const Placement& placement = store[i].spec.placement;
    const int64_t begin = store[i].flat_offset;
    const int64_t unit = unit_of(rules.units, i);
    const bool full = !buckets.empty() && unit < 0 && buckets.back().numel() >= rules.bucket_size;
    if (buckets.empty() || full || !together(buckets.back(), placement, unit))
      buckets.push_back({.begin = begin,
                         .end = begin,
                         .first_parameter = i,
                         .last_parameter = i,
                         .expert = placement.is_expert(),
                         .shared_by_stages = placement.is_shared_by_stages(),
                         .unit = unit});
    buckets.back().end = begin + store[i].numel();
    buckets.back().last_parameter = i + 1;
  }
  merge_last(buckets, rules.bucket_size);
  for (Bucket& bucket : buckets)
    cut_bucket(store, bucket.expert ? rules.expert_dp : rules.dp_cp, bucket);
  return buckets;
}

}  // namespace phalanx
