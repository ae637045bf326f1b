// Gathering ahead, reducing behind.
#include "parallel/parameter_units.h"

#include <algorithm>

namespace phalanx {
namespace {

void wait_for(std::vector<PendingWork>& work) {
  for (PendingWork& pending : work) pending->wait();
  work.clear();
}

}  // namespace

int64_t ShardedUnits::largest_unit(const ParameterStore& store,
                                   const std::vector<ParameterRange>& units) {
  int64_t largest = 0;
  for (const ParameterRange& unit : units) {
    const Parameter& last = store[unit.last - 1];
    largest = std::max(largest, last.flat_offset + last.numel() - store[unit.first].flat_offset);
  }
  return largest;
}

ShardedUnits::ShardedUnits(ParameterStore& store, Backend& backend, ProcessGroups& groups,
                           const std::vector<ParameterRange>& units,
                           const std::vector<Bucket>& buckets)
    : store_(store),
      ops_(backend),
      groups_(groups),
      partial_(store, backend, groups),
      units_(units),
      buckets_(units.size()),
      shard_at_(units.size()) {
  int64_t numel = 0;
  for (const Bucket& bucket : buckets) {
    const auto unit = static_cast<size_t>(bucket.unit);
    buckets_[unit].push_back(bucket);
    shard_at_[unit].push_back(numel);
    numel += bucket.counts[static_cast<size_t>(group_of(bucket, groups_).rank())];
  }
  const DType dtype = store.dtype();
  const auto take = [&](int64_t elements, DType type) {
    blocks_.push_back(ops_.allocate(elements * dtype_bytes(type)));
    return Tensor{blocks_.back().get(), {elements}, type, ops_.device()};
  };
  value_shards_ = take(numel, dtype);
  gradient_shards_ = take(numel, accumulator_dtype(dtype));
  const int64_t largest = largest_unit(store, units);
  for (WholeUnit& gathered : gathered_) gathered.buffer = take(largest, dtype);
  for (WholeUnit& reducing : reducing_) reducing.buffer = take(largest, accumulator_dtype(dtype));
}

int64_t ShardedUnits::unit_begin(int64_t unit) const {
  return store_[units_[static_cast<size_t>(unit)].first].flat_offset;
}

Tensor ShardedUnits::part(const Tensor& buffer, const Bucket& bucket) const {
  const int64_t begin = unit_begin(bucket.unit);
  return buffer.slice(bucket.begin - begin, bucket.end - begin);
}

// `shards` is value_shards_ or gradient_shards_, which lie alike.
Tensor ShardedUnits::shard(const Tensor& shards, const Bucket& bucket) const {
  const auto unit = static_cast<size_t>(bucket.unit);
  for (size_t i = 0; i < buckets_[unit].size(); ++i) {
    if (buckets_[unit][i].begin != bucket.begin) continue;
    const int64_t at = shard_at_[unit][i];
    const auto rank = static_cast<size_t>(group_of(bucket, groups_).rank());
    return shards.slice(at, at + bucket.counts[rank]);
  }
  fail("no unit has the bucket at element ", bucket.begin);
}

// Starts gathering unless the unit is there or on its way; the buffer that was used last is spared,
// because its unit may still run. Returns the buffer.
size_t ShardedUnits::fetch(int64_t unit) {
  for (size_t i = 0; i < gathered_.size(); ++i)
    if (gathered_[i].unit == unit) return i;
  const size_t free = 1 - last_used_;
  WholeUnit& target = gathered_[free];
  wait_for(target.work);
  target.unit = unit;
  for (const Bucket& bucket : buckets_[static_cast<size_t>(unit)]) {
    ProcessGroup& group = group_of(bucket, groups_);
    const Tensor whole = part(target.buffer, bucket);
    const auto [first, last] = bucket.shard(group.rank());
    ops_.copy(whole.slice(first - bucket.begin, last - bucket.begin), value_shard(bucket));
    target.work.push_back(group.all_gather_in_place_async(whole, bucket.counts));
  }
  return free;
}

void ShardedUnits::begin(int64_t unit, int64_t next) {
  const size_t index = fetch(unit);
  last_used_ = index;
  WholeUnit& gathered = gathered_[index];
  wait_for(gathered.work);
  store_.place_values(units_[static_cast<size_t>(unit)], gathered.buffer);
  if (0 <= next && next < static_cast<int64_t>(units_.size())) fetch(next);
}

void ShardedUnits::end(int64_t unit) {
  store_.place_values(units_[static_cast<size_t>(unit)], {});
}

void ShardedUnits::begin_backward(int64_t unit) {
  begin(unit, unit - 1);
  last_reducing_ = 1 - last_reducing_;
  WholeUnit& target = reducing_[last_reducing_];
  collect(target);
  target.unit = unit;
  ops_.zero(target.buffer);
  store_.place_gradients(units_[static_cast<size_t>(unit)], target.buffer);
}

void ShardedUnits::end_backward(int64_t unit) {
  WholeUnit& target = reducing_[last_reducing_];
  check(target.unit == unit, "unit ", unit, " ends a backward that unit ", target.unit, " began");
  for (const Bucket& bucket : buckets_[static_cast<size_t>(unit)]) {
    partial_.sum(bucket);
    target.work.push_back(
        group_of(bucket, groups_)
            .reduce_scatter_in_place_async(part(target.buffer, bucket), bucket.counts));
  }
  store_.place_gradients(units_[static_cast<size_t>(unit)], {});
  end(unit);
}

// Adds this rank's shards of what was reduced to the step's sums.
void ShardedUnits::collect(WholeUnit& gradients) {
  wait_for(gradients.work);
  if (gradients.unit == kNone) return;
  for (const Bucket& bucket : buckets_[static_cast<size_t>(gradients.unit)]) {
    const auto [first, last] = bucket.shard(group_of(bucket, groups_).rank());
    const Tensor sum = gradient_shard(bucket);
    ops_.add(sum, sum,
             part(gradients.buffer, bucket).slice(first - bucket.begin, last - bucket.begin));
  }
  gradients.unit = kNone;
}

void ShardedUnits::zero_gradients() {
  finish_gradients();
  ops_.zero(gradient_shards_);
}

void ShardedUnits::finish_gradients() {
  for (WholeUnit& reducing : reducing_) collect(reducing);
}

void ShardedUnits::forget_weights() {
  for (WholeUnit& gathered : gathered_) {
    wait_for(gathered.work);
    gathered.unit = kNone;
  }
}

}  // namespace phalanx
