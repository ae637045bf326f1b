// The meshes that tests run on, as lines of MeshCase.
#pragma once

#include <span>

namespace phalanx::test {

/// Every axis alone at 2 and at 4, modes of one axis, uneven layers, few key-value heads.
std::span<const char* const> single_meshes();
/// Every pair of tp, tp with sp, pp, cp, dp, ep and expert_tp.
std::span<const char* const> pair_meshes();
/// Meshes of 8 ranks that have every legal triple of choices (made by mesh_list.py).
std::span<const char* const> mixed_meshes();
/// Meshes with sharded parameters.
std::span<const char* const> zero3_meshes();

}  // namespace phalanx::test
