// Mesh equivalence: loss, every gradient, the gradient norm and the weights after two steps on a
// mesh of thread ranks equal one rank, within rounding. One test per layout, on the device that
// PHALANX_TEST_DEVICE names.
#include <gtest/gtest.h>

#include "kernels/make_backend.h"
#include "parallel/staged_process_group.h"
#include "parallel/thread_process_group.h"
#include "tests/mesh/mesh_case.h"
#include "tests/mesh/mesh_list.h"
#include "tests/test_device.h"

namespace phalanx::test {
namespace {

class MeshEquivalence : public testing::TestWithParam<const char*> {};

TEST_P(MeshEquivalence, EqualsOneRank) {
  const MeshCase mesh_case(GetParam());
  run_thread_ranks(static_cast<int>(mesh_case.world_size), [&](ThreadRank& rank) {
    const auto backend = make_backend(test_device(), {.num_threads = 1});
    ProcessGroups groups =
        staged(rank.process_groups(DeviceMesh(mesh_case.layout.parallel, rank.size())), *backend);
    LayoutStatistics statistics;
    const auto differences = compare_with_one_rank(mesh_case.layout, *backend, groups, &statistics);
    const bool sharded = mesh_case.layout.parallel.data_parallel_sharding_strategy ==
                         DataParallelSharding::optim_grads_params;
    EXPECT_EQ(statistics.num_sharded_layers > 0, sharded);
    if (rank.rank() != 0) return;
    for (const LayoutDifference& difference : differences)
      ADD_FAILURE() << "step " << difference.step << ": " << difference.what << " differs by "
                    << difference.difference << ", tolerance " << difference.tolerance;
  });
}

std::string name_of(const testing::TestParamInfo<const char*>& info) {
  return MeshCase(info.param).name();
}
INSTANTIATE_TEST_SUITE_P(Single, MeshEquivalence, testing::ValuesIn(single_meshes()), name_of);
INSTANTIATE_TEST_SUITE_P(Pairs, MeshEquivalence, testing::ValuesIn(pair_meshes()), name_of);
INSTANTIATE_TEST_SUITE_P(Mixed, MeshEquivalence, testing::ValuesIn(mixed_meshes()), name_of);
INSTANTIATE_TEST_SUITE_P(Zero3, MeshEquivalence, testing::ValuesIn(zero3_meshes()), name_of);

}  // namespace
}  // namespace phalanx::test
