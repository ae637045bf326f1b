// Rank arithmetic against brute force, also for world sizes nobody owns; what validate says.
#include "parallel/device_mesh.h"

#include <gmock/gmock.h>

#include <map>
#include <set>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const std::vector<MeshAxis> kDense{MeshAxis::pp, MeshAxis::dp, MeshAxis::cp, MeshAxis::tp};
const std::vector<MeshAxis> kExpert{MeshAxis::pp, MeshAxis::expert_dp, MeshAxis::ep,
                                    MeshAxis::expert_tp};

ParallelConfig config_of(int64_t tp, int64_t pp, int64_t cp, int64_t ep, int64_t expert_tp) {
  return {.tensor_model_parallel_size = tp,
          .pipeline_model_parallel_size = pp,
          .context_parallel_size = cp,
          .expert_model_parallel_size = ep,
          .expert_tensor_parallel_size = expert_tp};
}

std::vector<int64_t> coordinates(const DeviceMesh& mesh, int64_t rank,
                                 const std::vector<MeshAxis>& view) {
  std::vector<int64_t> result;
  for (const MeshAxis axis : view) result.push_back(mesh.coordinate(rank, axis));
  return result;
}

class Meshes : public testing::TestWithParam<std::pair<ParallelConfig, int64_t>> {};
INSTANTIATE_TEST_SUITE_P(Sizes, Meshes,
                         testing::Values(std::pair(config_of(1, 1, 1, 1, 1), 1),
                                         std::pair(config_of(1, 1, 1, 1, 1), 7),
                                         std::pair(config_of(2, 3, 1, 4, 1), 24),
                                         std::pair(config_of(2, 2, 2, 2, 4), 48),
                                         std::pair(config_of(8, 16, 4, 64, 1), 16384),
                                         std::pair(config_of(8, 9, 3, 9, 4), 15552)));

TEST_P(Meshes, BothViewsNumberTheRanksOnce) {
  const auto& [config, world] = GetParam();
  const DeviceMesh mesh(config, world);
  for (const auto& view : {kDense, kExpert}) {
    std::set<std::vector<int64_t>> seen;
    int64_t product = 1;
    for (const MeshAxis axis : view) product *= mesh.size(axis);
    EXPECT_EQ(product, world);
    for (int64_t rank = 0; rank < world; ++rank) {
      const auto place = coordinates(mesh, rank, view);
      for (size_t i = 0; i < view.size(); ++i) ASSERT_LT(place[i], mesh.size(view[i]));
      seen.insert(place);
      // The last axis varies fastest, so coordinates in view order sort like ranks.
      ASSERT_EQ(*seen.rbegin(), place);
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), world);
  }
}

TEST_P(Meshes, GroupsAreTheRanksThatAgreeOnAllOtherAxes) {
  const auto& [config, world] = GetParam();
  const DeviceMesh mesh(config, world);
  for (const auto& view : {kDense, kExpert}) {
    for (unsigned chosen = 0; chosen < 16; ++chosen) {
      std::vector<MeshAxis> axes;
      std::vector<MeshAxis> others;
      for (unsigned i = 0; i < 4; ++i) ((chosen >> i & 1U) ? axes : others).push_back(view[i]);
      std::map<std::vector<int64_t>, std::vector<int64_t>> expected;
      for (int64_t rank = 0; rank < world; ++rank)
        expected[coordinates(mesh, rank, others)].push_back(rank);
      for (int64_t rank = 0; rank < world; rank += 1 + world / 50)
        ASSERT_EQ(mesh.group_of(rank, axes), expected[coordinates(mesh, rank, others)]);
    }
  }
}

TEST(DeviceMesh, TensorParallelRanksAreNeighbours) {
  const DeviceMesh mesh(config_of(4, 2, 1, 1, 1), 16);
  EXPECT_THAT(mesh.group_of(6, {MeshAxis::tp}), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(mesh.group_of(6, {MeshAxis::dp}), ElementsAre(2, 6));
  EXPECT_THAT(mesh.group_of(6, {MeshAxis::pp}), ElementsAre(6, 14));
  EXPECT_THROW(mesh.group_of(0, {MeshAxis::dp, MeshAxis::ep}), Error);
  EXPECT_THROW(mesh.coordinate(16, MeshAxis::tp), Error);
}

TEST(ValidateParallelConfig, NamesOptionValueAndNearestLegalValue) {
  EXPECT_TRUE(validate(config_of(2, 2, 2, 4, 1), 16).empty());
  EXPECT_THAT(validate(config_of(3, 1, 1, 1, 1), 8),
              ElementsAre("tensor-model-parallel-size 3 does not divide the number of ranks 8; "
                          "nearest tensor-model-parallel-size is 2"));
  EXPECT_THAT(validate(config_of(2, 5, 1, 1, 1), 16),
              ElementsAre(HasSubstr("nearest pipeline-model-parallel-size is 4")));
  EXPECT_THAT(validate(config_of(1, 1, 1, 6, 1), 16),
              ElementsAre(HasSubstr("nearest expert-model-parallel-size is 4")));
  EXPECT_THAT(validate(config_of(3, 5, 7, 1, 1), 16), ElementsAre(HasSubstr("start from")));
}

TEST(ValidateParallelConfig, TellsAllProblemsAtOnce) {
  ParallelConfig config = config_of(0, 1, -2, 1, 1);
  config.ddp_bucket_size = 0;
  EXPECT_THAT(validate(config, 8),
              ElementsAre(HasSubstr("tensor-model-parallel-size 0"),
                          HasSubstr("context-parallel-size -2"), HasSubstr("ddp-bucket-size 0")));
  EXPECT_THAT(validate(config_of(3, 1, 1, 3, 1), 8),
              ElementsAre(HasSubstr("tensor-model-parallel-size 3"),
                          HasSubstr("expert-model-parallel-size 3")));
  EXPECT_THROW(DeviceMesh(config, 8), UsageError);
  const int64_t huge = int64_t{1} << 40;
  EXPECT_FALSE(validate(config_of(huge, huge, huge, huge, huge), 8).empty());
}

}  // namespace
}  // namespace phalanx
