// Mesh equivalence: loss, every gradient, the gradient norm and the weights after two steps on a
// mesh of thread ranks equal one rank, within rounding. One test per layout.
#include <gtest/gtest.h>

#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/mesh/mesh_case.h"

namespace phalanx::test {
namespace {

// Every axis alone, every pair, and modes of one axis.
const char* const kSmall[] = {
    "cswa2: dp2", "cswa2: dp4", "cswa2: tp2", "cswa2: tp4",   "cswa2: tp2 sp", "cswa2: tp4 sp",
    "cswa2: pp2", "cswa2: pp4", "moe: dp2",   "moe: dp2 ep2", "moe: tp2 sp",
};

class MeshEquivalence : public testing::TestWithParam<const char*> {};

TEST_P(MeshEquivalence, EqualsOneRank) {
  const MeshCase mesh_case(GetParam());
  run_thread_ranks(static_cast<int>(mesh_case.world_size), [&](ThreadRank& rank) {
    CpuBackend backend(1);
    ProcessGroups groups = rank.process_groups(DeviceMesh(mesh_case.layout.parallel, rank.size()));
    const auto differences = compare_with_one_rank(mesh_case.layout, backend, groups);
    if (rank.rank() != 0) return;
    for (const LayoutDifference& difference : differences)
      ADD_FAILURE() << "step " << difference.step << ": " << difference.what << " differs by "
                    << difference.difference << ", tolerance " << difference.tolerance;
  });
}

INSTANTIATE_TEST_SUITE_P(Small, MeshEquivalence, testing::ValuesIn(kSmall),
                         [](const auto& info) { return MeshCase(info.param).name(); });

}  // namespace
}  // namespace phalanx::test
