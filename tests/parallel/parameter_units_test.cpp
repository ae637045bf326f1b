// Sharded units: which weights are on their way while a layer runs.
#include <gtest/gtest.h>

#include "kernels/cpu/cpu_backend.h"
#include "parallel/gradient_buffer.h"
#include "parallel/thread_process_group.h"

namespace phalanx {
namespace {

TEST(ShardedUnits, GatherTheNextLayerWhileOneRuns) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    ProcessGroups groups = rank.process_groups(DeviceMesh(ParallelConfig{}, 2));
    CpuBackend backend(1);
    ParameterStore store;
    std::vector<ParameterRange> layers;
    for (int64_t i = 0; i < 4; ++i) {
      store.add({.name = "layer." + std::to_string(i), .global_shape = {4, 3}});
      layers.push_back({i, i + 1});
    }
    store.allocate(backend, DType::f32, layers);
    GradientBuffer gradients(store, backend, groups, {.units = layers});
    const auto gathers = [&] { return groups.dp_cp->traffic(Collective::all_gather).calls; };
    gradients.zero();
    ParameterUnits& units = gradients.units();
    const int64_t forwards[] = {2, 3, 4, 4};  // the first its own and the next, the last nothing
    for (int64_t unit = 0; unit < 4; ++unit) {
      units.begin_forward(unit);
      EXPECT_NE(store[unit].value.data, nullptr);
      EXPECT_EQ(gathers(), forwards[unit]) << "forward of unit " << unit;
      units.end_forward(unit);
      EXPECT_EQ(store[unit].value.data, nullptr);
    }
    const int64_t backwards[] = {6, 6, 5, 4};  // units 3 and 2 are still there
    for (int64_t unit = 3; unit >= 0; --unit) {
      units.begin_backward(unit);
      EXPECT_NE(store[unit].gradient.data, nullptr);
      EXPECT_EQ(gathers(), backwards[unit]) << "backward of unit " << unit;
      units.end_backward(unit);
      EXPECT_EQ(store[unit].gradient.data, nullptr);
    }
    gradients.finish_sync();
  });
}

}  // namespace
}  // namespace phalanx
