// Buckets, their shards, and the reductions that run beside the backward.
#include "parallel/gradient_buffer.h"

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

bool reduced_alike(const Bucket& bucket, const Placement& placement) {
  return bucket.expert == placement.is_expert() &&
         bucket.shared_by_stages == placement.is_shared_by_stages();
}

/// What is left over joins the bucket before it, so that no bucket is too small to be worth a
/// message.
void merge_last(std::vector<Bucket>& buckets, int64_t bucket_size) {
  if (buckets.size() < 2 || buckets.back().end - buckets.back().begin >= bucket_size) return;
  Bucket& target = buckets[buckets.size() - 2];
  const Bucket& last = buckets.back();
  if (target.expert != last.expert || target.shared_by_stages != last.shared_by_stages) return;
  target.end = last.end;
  target.last_parameter = last.last_parameter;
  buckets.pop_back();
}

}  // namespace

ReducingRanks reducing_ranks(const ProcessGroups& groups) {
  return {.dp_cp = groups.dp_cp->size(), .expert_dp = groups.expert_dp->size()};
}

std::vector<Bucket> make_buckets(const ParameterStore& store, int64_t bucket_size,
                                 const ReducingRanks& ranks) {
  check(bucket_size >= 1, "ddp-bucket-size ", bucket_size, " is below 1; nearest is 1");
  std::vector<Bucket> buckets;
  for (int64_t i = 0; i < store.size(); ++i) {
    const Placement& placement = store[i].spec.placement;
    const int64_t begin = store[i].flat_offset;
    if (buckets.empty() || buckets.back().end - buckets.back().begin >= bucket_size ||
        !reduced_alike(buckets.back(), placement))
      buckets.push_back({.begin = begin,
                         .end = begin,
                         .first_parameter = i,
                         .last_parameter = i,
                         .expert = placement.is_expert(),
                         .shared_by_stages = placement.is_shared_by_stages()});
    buckets.back().end = begin + store[i].numel();
    buckets.back().last_parameter = i + 1;
  }
  merge_last(buckets, bucket_size);
  for (Bucket& bucket : buckets)
    cut_bucket(store, bucket.expert ? ranks.expert_dp : ranks.dp_cp, bucket);
  return buckets;
}

GradientBuffer::GradientBuffer(ParameterStore& store, Backend& backend, ProcessGroups& groups,
                               const Options& options)
    : store_(store),
      ops_(backend),
      groups_(groups),
      gradient_sum_(backend),
      options_(options),
      buckets_(make_buckets(store, options.bucket_size, reducing_ranks(groups))),
      pending_(buckets_.size()),
      started_(buckets_.size()),
      not_final_(buckets_.size()) {}

void GradientBuffer::zero() {
  ops_.zero(store_.flat_gradient());
  started_.assign(buckets_.size(), 0);
  not_final_ = buckets_.size();
}

// What another stage adds to has to wait: this stage may be the one that the other's backwards wait
// for.
void GradientBuffer::final_from(int64_t first_parameter) {
  if (!options_.overlap) return;
  while (not_final_ > 0 && buckets_[not_final_ - 1].first_parameter >= first_parameter)
    if (!buckets_[--not_final_].shared_by_stages) start_bucket(not_final_);
}

void GradientBuffer::finish_sync() {
  for (size_t i = buckets_.size(); i-- > 0;)
    if (started_[i] == 0) start_bucket(i);
  // Waiting in the order of starting, so that a failure is reported by the collective it hit first.
  for (size_t i = pending_.size(); i-- > 0;) {
    if (!pending_[i]) continue;
    const PendingWork work = std::move(pending_[i]);
    work->wait();
  }
}

// Sums over ranks that are not the bucket's own group.
void GradientBuffer::sum_partial_gradients(const Bucket& bucket) {
  ProcessGroup& tp = *groups_.tp;
  for (int64_t i = bucket.first_parameter; i < bucket.last_parameter; ++i) {
    const Parameter& parameter = store_[i];
    const Placement& placement = parameter.spec.placement;
    if (placement.partial_gradient.contains(MeshAxis::tp))
      tp.all_reduce(parameter.gradient, ReduceOp::sum);
    std::vector<int> replicas(static_cast<size_t>(placement.tp_replicas));
    std::iota(replicas.begin(), replicas.end(),
              tp.rank() / placement.tp_replicas * placement.tp_replicas);
    gradient_sum_(tp, replicas, parameter.gradient);
    if (placement.is_shared_by_stages())
      gradient_sum_(*groups_.pp, {0, groups_.pp->size() - 1}, parameter.gradient);
  }
}

void GradientBuffer::start_bucket(size_t index) {
  const Bucket& bucket = buckets_[index];
  started_[index] = 1;
  sum_partial_gradients(bucket);
  ProcessGroup& group = group_of(bucket);
  if (group.size() == 1) return;
  // The communication thread reads what the backend wrote.
  ops_.synchronize();
  pending_[index] = group.reduce_scatter_in_place_async(
      store_.flat_gradient().slice(bucket.begin, bucket.end), bucket.counts);
}

std::pair<int64_t, int64_t> GradientBuffer::shard_range(size_t index) const {
  const Bucket& bucket = buckets_[index];
  const auto own = bucket.counts.begin() + group_of(bucket).rank();
  const int64_t begin = std::accumulate(bucket.counts.begin(), own, bucket.begin);
  return {begin, begin + *own};
}

}  // namespace phalanx
