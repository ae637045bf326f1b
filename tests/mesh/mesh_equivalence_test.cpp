// Mesh equivalence: loss, every gradient, the gradient norm and the weights after two steps on a
// mesh of thread ranks equal one rank, within rounding. One test per layout.
#include <gtest/gtest.h>

#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/mesh/mesh_case.h"

namespace phalanx::test {
namespace {

// clang-format off
// Every axis alone and modes of one axis.
const char* const kSmall[] = {
    "cswa2: dp2",
    "cswa2: dp4",
    "cswa2: tp2",
    "cswa2: tp4",
    "cswa2: tp2 sp",
    "cswa2: tp4 sp",
    "cswa2: pp2",
    "cswa2: pp4",
    "moe: dp2",
    "moe: dp2 ep2",
    "moe: tp2 sp",
    "cswa2: cp2",
    "cswa2: cp4",
    "hybrid: cp2",
    "swa3: cp2",
    "naive2: cp2",
    "sparse: cp2",
    "documents: cp2",
    "documents: cp2 tp2 sp dp2",
    "moe: cp2",
    "moe: cp2 tp2 sp dp2 ep4 etp2",
    "cswa2: cp2 pp2 zb",
    "swa3: cp2 tp2 sp pp2 zb recompute=attention",
    "swa3: cp2 recompute=layer",
    "cswa2: dp2 zero3",
    "cswa2: dp4 zero3",
    "cswa2: dp2 tp2 sp zero3 recompute=layer",
    "cswa2: dp2 pp2 vp2 zero3",
    "moe: dp4 ep2 zero3",
    "moe: dp2 tp2 sp ep2 zero3",
    "cswa2: dp2 cp2 pp2 zero3",
    "cswa2: tp4 kv2 dp2 zero3",
    "cswa2: pp2 gpipe",
    "cswa2: pp2 zb",
    "cswa2: pp2 vp2",
    "cswa2: pp4 zb",
    "cswa2: pp2 layout=4,0",
    "cswa2: pp2 layout=0,4",
    "cswa2: pp2 layout=1,3",
    "cswa2: tp4 kv2",
    "cswa2: tp4 kv1 sp",
    "olmo2: tp4 kv2 sp",
    "olmo2: tp2",
    "cswa2: recompute=layer",
    "cswa2: recompute=attention",
    "moe: dp2 ep2 recompute=layer",
    "cswa2: pp2 zb tp2 sp recompute=attention",
    "untied: pp2 tp2",
    "documents: tp2 sp pp2 dp2",
    "moe: dp2 tp2 sp pp2 ep4",
    "moe: dp2 tp2 sp ep2 etp2",
    "moe: dp2 pp2 zb ep2",
    "swa3: tp2 pp2",
    "naive2: tp2 pp2 dp2",
    "sparse: tp2 pp2",
    "hybrid: tp2 sp pp4",
};
// clang-format on

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
