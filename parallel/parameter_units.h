// ParameterUnits: layers whose weights need to be present only while they run.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "parallel/partial_gradients.h"

namespace phalanx {

/// What a stage calls around its layers. This one is for weights that are always present: nothing
/// to do.
class ParameterUnits {
 public:
  virtual ~ParameterUnits() = default;
  /// When it returns, the weights of `unit` are present and those of the unit after are on their
  /// way.
  virtual void begin_forward(int64_t /*unit*/) {}
  virtual void end_forward(int64_t /*unit*/) {}
  /// The same with zeroed gradients, and the unit before on its way.
  virtual void begin_backward(int64_t /*unit*/) {}
  /// The gradients are complete for this micro-batch.
  virtual void end_backward(int64_t /*unit*/) {}
};

/// ZeRO stage 3 (Rajbhandari et al. 2020): each rank keeps its shard of every unit's weights and
/// gradients. Whole weights exist in two buffers, of the unit that runs and of the next, which is
/// gathered meanwhile; whole gradients in two, of the unit that runs and of the last, which is
/// reduced meanwhile. Gathered twice and reduced once per micro-batch. Borrows everything.
class ShardedUnits final : public ParameterUnits {
 public:
  /// `buckets` are those of `units` (Bucket::unit numbers them).
  ShardedUnits(ParameterStore& store, Backend& backend, ProcessGroups& groups,
               const std::vector<ParameterRange>& units, const std::vector<Bucket>& buckets);

  void begin_forward(int64_t unit) override { begin(unit, unit + 1); }
  void end_forward(int64_t unit) override { end(unit); }
  void begin_backward(int64_t unit) override;
  void end_backward(int64_t unit) override;

  /// Before a step: gradient shards are zero.
  void zero_gradients();
  /// After the last backward: gradient shards hold the sums.
  void finish_gradients();
  /// The shards of weights have changed: what was gathered is old.
  void forget_weights();

  /// This rank's shard of `bucket`, flat.
  Tensor value_shard(const Bucket& bucket) const { return shard(value_shards_, bucket); }
  Tensor gradient_shard(const Bucket& bucket) const { return shard(gradient_shards_, bucket); }

  /// Elements of the largest unit: the size of each of the four buffers.
  static int64_t largest_unit(const ParameterStore& store,
                              const std::vector<ParameterRange>& units);

 private:
  static constexpr int64_t kNone = -1;
  /// A whole unit: weights that are there or on their way, gradients in use or being reduced.
  struct WholeUnit {
    Tensor buffer;
    int64_t unit = kNone;
    std::vector<PendingWork> work;
  };

  void begin(int64_t unit, int64_t next);
  void end(int64_t unit);
  size_t fetch(int64_t unit);
  void collect(WholeUnit& gradients);
  int64_t unit_begin(int64_t unit) const;
  Tensor part(const Tensor& buffer, const Bucket& bucket) const;
  Tensor shard(const Tensor& shards, const Bucket& bucket) const;

  ParameterStore& store_;
  Backend& ops_;
  ProcessGroups& groups_;
  PartialGradients partial_;
  std::vector<ParameterRange> units_;
  std::vector<std::vector<Bucket>> buckets_;  // per unit
  std::vector<std::shared_ptr<void>> blocks_;
  Tensor value_shards_, gradient_shards_;       // flat, bucket after bucket
  std::vector<std::vector<int64_t>> shard_at_;  // per unit and bucket: element of the shards
  std::array<WholeUnit, 2> gathered_;
  std::array<WholeUnit, 2> reducing_;
  size_t last_used_ = 0;      // of gathered_
  size_t last_reducing_ = 0;  // of reducing_
};

}  // namespace phalanx
