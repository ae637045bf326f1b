// Placement: how one parameter lies on the mesh. The single source for initialisation, gradient
// sync, gradient norm, optimizer sharding, checkpoints and the replica check.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace phalanx {

/// Axes of the two views of the ranks: dense (pp, dp, cp, tp) and expert (pp, expert_dp, ep,
/// expert_tp).
enum class MeshAxis : uint8_t { pp, dp, cp, tp, expert_dp, ep, expert_tp };
inline constexpr int kNumMeshAxes = 7;

/// Set of axes.
class AxisSet {
 public:
  constexpr AxisSet() = default;
  template <class... Axes>
  constexpr explicit AxisSet(Axes... axes) {
    (add(axes), ...);
  }
  constexpr void add(MeshAxis axis) { bits_ |= bit(axis); }
  constexpr bool contains(MeshAxis axis) const { return (bits_ & bit(axis)) != 0; }
  constexpr bool operator==(const AxisSet&) const = default;

 private:
  static constexpr uint8_t bit(MeshAxis axis) {
    return static_cast<uint8_t>(1U << static_cast<unsigned>(axis));
  }
  uint8_t bits_ = 0;
};

struct Placement {
  static constexpr int8_t kReplicate = -1;

  /// Per axis: kReplicate, or the tensor dim that is cut.
  std::array<int8_t, kNumMeshAxes> shard_dim{kReplicate, kReplicate, kReplicate, kReplicate,
                                             kReplicate, kReplicate, kReplicate};
  /// Consecutive tp ranks that hold the same piece (key-value heads fewer than ranks); each has a
  /// part of its gradient's sum.
  int tp_replicas = 1;
  /// Axes over which a rank's gradient is only a part of the sum. pp: the first and the last stage
  /// hold it both (tied embeddings). expert_dp instead of dp and cp: experts.
  AxisSet partial_gradient{MeshAxis::dp, MeshAxis::cp};

  int8_t dim(MeshAxis axis) const { return shard_dim[static_cast<size_t>(axis)]; }

  /// Experts are reduced and their state is cut over expert_dp, everything else over dp x cp.
  bool is_expert() const { return partial_gradient.contains(MeshAxis::expert_dp); }
  bool is_shared_by_stages() const { return partial_gradient.contains(MeshAxis::pp); }

  static Placement replicated() { return {}; }
  static Placement sharded(MeshAxis axis, int8_t dim) {
    Placement placement;
    placement.shard_dim[static_cast<size_t>(axis)] = dim;
    return placement;
  }
};

}  // namespace phalanx
