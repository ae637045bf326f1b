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

}  // namespace

std::vector<Bucket> make_buckets(const ParameterStore& store, int64_t bucket_size, int num_ranks) {
  check(bucket_size >= 1, "ddp-bucket-size ", bucket_size, " is below 1; nearest is 1");
  std::vector<Bucket> buckets;
  for (int64_t i = 0; i < store.size(); ++i) {
    const int64_t begin = store[i].flat_offset;
    if (buckets.empty() || buckets.back().end - buckets.back().begin >= bucket_size)
      buckets.push_back(
          {.begin = begin, .end = begin, .first_parameter = i, .last_parameter = i, .counts = {}});
    buckets.back().end = begin + store[i].numel();
    buckets.back().last_parameter = i + 1;
  }
  // What is left over joins the bucket before it, so that no bucket is too small to be worth a
  // message.
  if (buckets.size() > 1 && buckets.back().end - buckets.back().begin < bucket_size) {
    Bucket& target = buckets[buckets.size() - 2];
    target.end = buckets.back().end;
    target.last_parameter = buckets.back().last_parameter;
    buckets.pop_back();
  }
  for (Bucket& bucket : buckets) cut_bucket(store, num_ranks, bucket);
  return buckets;
}

GradientBuffer::GradientBuffer(ParameterStore& store, Backend& backend, ProcessGroup& dp_cp,
                               const Options& options)
    : store_(store),
      ops_(backend),
      dp_cp_(dp_cp),
      options_(options),
      buckets_(make_buckets(store, options.bucket_size, dp_cp.size())),
      pending_(buckets_.size()),
      not_started_(buckets_.size()) {
  for (int64_t i = 0; i < store.size(); ++i)
    check(options.tp != nullptr || !store[i].spec.placement.partial_gradient.contains(MeshAxis::tp),
          "the gradient of ", store[i].spec.name,
          " is partial over tp, so GradientBuffer needs Options::tp");
}

void GradientBuffer::zero() {
  ops_.zero(store_.flat_gradient());
  not_started_ = buckets_.size();
}

void GradientBuffer::final_from(int64_t first_parameter) {
  if (!options_.overlap) return;
  while (not_started_ > 0 && buckets_[not_started_ - 1].first_parameter >= first_parameter)
    start_bucket(--not_started_);
}

void GradientBuffer::finish_sync() {
  while (not_started_ > 0) start_bucket(--not_started_);
  // Waiting in the order of starting, so that a failure is reported by the collective it hit first.
  for (size_t i = pending_.size(); i-- > 0;) {
    if (!pending_[i]) continue;
    const PendingWork work = std::move(pending_[i]);
    work->wait();
  }
}

void GradientBuffer::start_bucket(size_t index) {
  const Bucket& bucket = buckets_[index];
  for (int64_t i = bucket.first_parameter; options_.tp != nullptr && i < bucket.last_parameter; ++i)
    if (store_[i].spec.placement.partial_gradient.contains(MeshAxis::tp))
      options_.tp->all_reduce(store_[i].gradient, ReduceOp::sum);
  if (dp_cp_.size() == 1) return;
  // The communication thread reads what the backend wrote.
  ops_.synchronize();
  pending_[index] = dp_cp_.reduce_scatter_in_place_async(
      store_.flat_gradient().slice(bucket.begin, bucket.end), bucket.counts);
}

std::pair<int64_t, int64_t> GradientBuffer::shard_range(size_t index) const {
  const Bucket& bucket = buckets_[index];
  const auto own = bucket.counts.begin() + dp_cp_.rank();
  const int64_t begin = std::accumulate(bucket.counts.begin(), own, bucket.begin);
  return {begin, begin + *own};
}

}  // namespace phalanx
