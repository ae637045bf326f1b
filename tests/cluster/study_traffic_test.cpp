// Bytes per rank and step by formula against the counters of a real step, on every rank of every
// mesh that the mesh tests have.
#include "cluster/study_traffic.h"

#include <gtest/gtest.h>

#include <array>

#include "parallel/thread_process_group.h"
#include "tests/mesh/mesh_case.h"
#include "tests/mesh/mesh_list.h"
#include "tests/mesh/mesh_system.h"

namespace phalanx::test {
namespace {

/// What one step moved, over all groups; absent where the forecast leaves it to the data.
std::vector<StepBytes> measured(const std::vector<TrafficSnapshot>& before, ProcessGroups& groups) {
  std::vector<StepBytes> list;
  const auto all = all_of(groups);
  for (size_t i = 0; i < all.size(); ++i) {
    const ProcessGroup& group = **all[i];
    for (int j = 0; j < kNumCollectives; ++j) {
      const auto operation = static_cast<Collective>(j);
      const Traffic traffic = before[i].since(operation);
      if (group.size() > 1 && traffic.bytes > 0)
        list.push_back({group.name(), operation, traffic.bytes});
    }
  }
  return list;
}

/// Forecast and counters of every rank, by name. `checked` counts comparisons.
void compare(const char* line, int64_t& checked) {
  SCOPED_TRACE(line);
  MeshCase mesh(line);
  mesh.layout.dtype = DType::bf16;
  RunConfig config = mesh.run_config();
  config.training.precision = ComputePrecision::bf16;
  std::vector<MicroBatch> batch;
  for (int64_t i = 0; i < mesh.layout.num_micro_batches; ++i)
    batch.push_back(make_micro_batch(mesh.layout, i));
  std::vector<std::vector<StepBytes>> counted(static_cast<size_t>(mesh.world_size));
  run_thread_ranks(static_cast<int>(mesh.world_size), [&](ThreadRank& rank) {
    MeshSystem system(mesh.layout, mesh.layout.parallel,
                      rank.process_groups(DeviceMesh(mesh.layout.parallel, rank.size())));
    std::vector<TrafficSnapshot> before;
    for (const auto* group : all_of(system.groups)) before.emplace_back(**group);
    system.step(batch);
    counted[static_cast<size_t>(rank.rank())] = measured(before, system.groups);
  });
  for (int64_t rank = 0; rank < mesh.world_size; ++rank) {
    std::map<std::pair<std::string, Collective>, int64_t> bytes;
    for (const StepBytes& item : counted[static_cast<size_t>(rank)])
      bytes[{item.group, item.operation}] = *item.bytes;
    for (const StepBytes& item : predict_step_bytes(config, mesh.world_size, rank)) {
      const int64_t real = bytes[{item.group, item.operation}];
      if (item.bytes) {
        EXPECT_EQ(*item.bytes, real)
            << "rank " << rank << " " << item.group << " " << collective_name(item.operation);
        ++checked;
      } else {
        EXPECT_GT(mesh.layout.model.num_experts, 0) << item.group << ": left to the data";
      }
      bytes.erase({item.group, item.operation});
    }
    for (const auto& [key, real] : bytes)
      ADD_FAILURE() << "rank " << rank << ": nothing is forecast of " << key.first << " "
                    << collective_name(key.second) << ", which moved " << real;
  }
}

void compare_all(std::span<const char* const> lines, int64_t least) {
  int64_t checked = 0;
  for (const char* line : lines) compare(line, checked);
  EXPECT_GE(checked, least);
}

TEST(StepBytes, OfEveryAxisAlone) {
  compare_all(single_meshes(), 200);
}
TEST(StepBytes, OfEveryPairOfAxes) {
  compare_all(pair_meshes(), 200);
}
TEST(StepBytes, OfMixedMeshes) {
  compare_all(mixed_meshes(), 500);
}
TEST(StepBytes, OfShardedParameters) {
  compare_all(zero3_meshes(), 50);
}
// Two halves of a backward gather the gradients of outputs twice.
TEST(StepBytes, OfSplitBackwardsWithSequenceParallel) {
  constexpr const char* kLines[] = {"cswa2: tp2 sp pp2 zb", "swa3: tp2 pp2 zb recompute=attention"};
  compare_all(kLines, 20);
}

}  // namespace
}  // namespace phalanx::test
