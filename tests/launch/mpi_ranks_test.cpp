// How many ranks the launcher says it started.
#include "launch/mpi_ranks.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

namespace phalanx {
namespace {

int64_t launched(const std::map<std::string, std::string>& variables) {
  return launched_ranks([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(LaunchedRanks, SaysNothingWithoutALauncher) {
  EXPECT_EQ(launched({}), 0);
}

TEST(LaunchedRanks, MpirunsCountWinsOverSlurms) {
  EXPECT_EQ(launched({{"OMPI_COMM_WORLD_SIZE", "8"},
                      {"SLURM_STEP_ID", "0"},
                      {"SLURM_PROCID", "0"},
                      {"SLURM_NTASKS", "2"}}),
            8);
}

TEST(LaunchedRanks, SlurmCountsInsideAStepOnly) {
  EXPECT_EQ(launched({{"SLURM_NTASKS", "4"}}), 0);
  EXPECT_EQ(launched({{"SLURM_NTASKS", "4"}, {"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "3"}}), 4);
  EXPECT_EQ(launched({{"SLURM_NTASKS", "4"},
                      {"SLURM_STEP_NUM_TASKS", "2"},
                      {"SLURM_STEP_ID", "1"},
                      {"SLURM_PROCID", "0"}}),
            2);
}

TEST(LaunchedRanks, PmiCounts) {
  EXPECT_EQ(launched({{"PMI_SIZE", "16"}}), 16);
}

}  // namespace
}  // namespace phalanx
