// DeviceMesh: rank <-> coordinates on named axes. Pure arithmetic, no MPI.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/parallel_config.h"
#include "parallel/placement.h"

namespace phalanx {

/// The value nearest to `wanted` that divides `whole` (both at least 1), the smaller on a tie.
int64_t nearest_divisor(int64_t wanted, int64_t whole);

/// Data-parallel ranks of `config` on `world_size` ranks, at least 1; also for sizes that make no
/// mesh, because validation asks about those.
int64_t data_parallel_size(const ParallelConfig& config, int64_t world_size);

/// Two views of the same ranks, outermost axis first: dense (pp, dp, cp, tp) and expert (pp,
/// expert_dp, ep, expert_tp), where expert_dp * ep * expert_tp = dp * cp * tp. tp varies fastest,
/// so that tensor-parallel ranks are neighbours.
class DeviceMesh {
 public:
  /// Throws UsageError with all problems of `validate(config, world_size)`.
  DeviceMesh(const ParallelConfig& config, int64_t world_size);

  int64_t world_size() const { return world_size_; }
  int64_t size(MeshAxis axis) const;
  /// Coordinate of `rank` on `axis`.
  int64_t coordinate(int64_t rank, MeshAxis axis) const;
  /// Ranks that share all coordinates with `rank` but those on `axes` (all of one view), ascending.
  std::vector<int64_t> group_of(int64_t rank, const std::vector<MeshAxis>& axes) const;

 private:
  int64_t world_size_;
  int64_t sizes_[kNumMeshAxes];
};

}  // namespace phalanx
