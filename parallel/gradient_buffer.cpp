// Reductions that run beside the backward.
#include "parallel/gradient_buffer.h"

#include <algorithm>

namespace phalanx {

GradientBuffer::GradientBuffer(ParameterStore& store, Backend& backend, ProcessGroups& groups,
                               const Options& options)
    : store_(store),
      ops_(backend),
      groups_(groups),
      partial_(store, backend, groups),
      options_(options),
      buckets_(make_buckets(store, bucket_rules(groups, options.bucket_size, options.units))),
      pending_(buckets_.size()),
      started_(buckets_.size()),
      not_final_(buckets_.size()) {
  if (options.units.empty()) return;
  std::vector<Bucket> of_units;
  std::copy_if(buckets_.begin(), buckets_.end(), std::back_inserter(of_units),
               [](const Bucket& bucket) { return bucket.unit >= 0; });
  sharded_ = std::make_unique<ShardedUnits>(store, backend, groups, options.units, of_units);
}

void GradientBuffer::zero() {
  store_.zero_gradients(ops_);
  if (sharded_) sharded_->zero_gradients();
  // Units reduce their buckets themselves.
  for (size_t i = 0; i < buckets_.size(); ++i) started_[i] = buckets_[i].unit >= 0 ? 1 : 0;
  not_final_ = buckets_.size();
}

// What another stage adds to has to wait: this stage may be the one that the other's backwards wait
// for.
void GradientBuffer::final_from(int64_t first_parameter) {
  if (!options_.overlap) return;
  while (not_final_ > 0 && buckets_[not_final_ - 1].first_parameter >= first_parameter) {
    --not_final_;
    if (started_[not_final_] == 0 && !buckets_[not_final_].shared_by_stages)
      start_bucket(not_final_);
  }
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
  if (sharded_) sharded_->finish_gradients();
}

void GradientBuffer::start_bucket(size_t index) {
  const Bucket& bucket = buckets_[index];
  started_[index] = 1;
  partial_.sum(bucket);
  ProcessGroup& group = group_of(bucket, groups_);
  if (group.size() == 1) return;
  pending_[index] = group.reduce_scatter_in_place_async(store_.gradients(bucket.begin, bucket.end),
                                                        bucket.counts);
}

void GradientBuffer::gather_weights() {
  for (const Bucket& bucket : buckets_)
    if (bucket.unit < 0)
      group_of(bucket, groups_)
          .all_gather_in_place(store_.values(bucket.begin, bucket.end), bucket.counts);
  if (sharded_) sharded_->forget_weights();
}

ParameterUnits& GradientBuffer::units() {
  return sharded_ ? static_cast<ParameterUnits&>(*sharded_) : resident_;
}

std::pair<int64_t, int64_t> GradientBuffer::shard_range(size_t index) const {
  const Bucket& bucket = buckets_[index];
  return bucket.shard(group_of(bucket, groups_).rank());
}

Tensor GradientBuffer::value_shard(size_t index) const {
  if (buckets_[index].unit >= 0) return sharded_->value_shard(buckets_[index]);
  const auto [begin, end] = shard_range(index);
  return store_.values(begin, end);
}

Tensor GradientBuffer::gradient_shard(size_t index) const {
  if (buckets_[index].unit >= 0) return sharded_->gradient_shard(buckets_[index]);
  const auto [begin, end] = shard_range(index);
  return store_.gradients(begin, end);
}

}  // namespace phalanx
