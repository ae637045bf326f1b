// The executor on thread ranks: all schedules, sleepy ranks, and ranks that fail.
#include "parallel/pipeline_executor.h"

#include <gmock/gmock.h>

#include "parallel/thread_process_group.h"
#include "tests/allocation_count.h"
#include "tests/parallel/pipeline_checks.h"

namespace phalanx::test {
namespace {

using Kind = PipelineScheduleKind;

class PipelineRun : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, PipelineRun, testing::Values(1, 2, 3, 4, 7));

TEST_P(PipelineRun, EverySchedule) {
  run_thread_ranks(GetParam(), [](ThreadRank& rank) {
    const auto pp = rank.world_group();
    for (const PipelineCase& run : pipeline_cases(pp->size(), 3)) check_pipeline(*pp, run);
  });
}

TEST_P(PipelineRun, EveryScheduleWithRanksThatSleep) {
  run_thread_ranks(GetParam(), [](ThreadRank& rank) {
    const auto pp = rank.world_group();
    const BeforeAction sleep = random_sleep(static_cast<uint64_t>(rank.rank()));
    for (const PipelineCase& run : pipeline_cases(pp->size(), 2)) check_pipeline(*pp, run, sleep);
  });
}

TEST(PipelineRun, ManyRanksAndChunksEndWithRendezvousMessages) {
  run_thread_ranks(8, [](ThreadRank& rank) {
    const auto pp = rank.world_group();
    check_pipeline(*pp, {Kind::interleaved, false, 4, 16});
    check_pipeline(*pp, {Kind::automatic, true, 4, 16});
    check_pipeline(*pp, {Kind::zero_bubble, false, 1, 16});
  });
}

TEST_P(PipelineRun, ARankThatFailsEndsAll) {
  const int num_ranks = GetParam();
  const auto run = [&](int failing, size_t after, const PipelineCase& test_case) {
    run_thread_ranks(num_ranks, [&](ThreadRank& rank) {
      const auto pp = rank.world_group();
      size_t count = 0;
      check_pipeline(*pp, test_case, [&](const PipelineAction&) {
        if (rank.rank() == failing && count++ == after) fail("this layer is out of ink");
      });
    });
  };
  for (const PipelineCase& test_case :
       {PipelineCase{Kind::gpipe, false, 1, 4},
        PipelineCase{Kind::interleaved, false, 2, int64_t{2} * num_ranks},
        PipelineCase{Kind::zero_bubble, false, 1, 4}})
    for (const int failing : {0, num_ranks - 1})
      for (const size_t after : {0U, 3U, 7U})
        EXPECT_THAT([&] { run(failing, after, test_case); },
                    testing::ThrowsMessage<Error>(testing::HasSubstr("out of ink")));
}

// A stage of which only the allocations of the executor are left.
class IdleStage final : public PipelineStage {
 public:
  Tensor forward_buffer(int64_t, int64_t) override { return {}; }
  Tensor backward_buffer(int64_t, int64_t) override { return {}; }
  Tensor forward(const PipelineAction&) override { return {}; }
  Tensor backward(const PipelineAction&, bool) override { return {}; }
  void backward_weight(const PipelineAction&, bool) override {}
};

TEST(PipelineRun, ARankAloneAllocatesNothingPerStep) {
  run_thread_ranks(1, [](ThreadRank& rank) {
    const auto pp = rank.world_group();
    IdleStage stage;
    PipelineExecutor executor(actions_of(*pp, {Kind::zero_bubble, false, 1, 6}), *pp, 1);
    const int64_t before = count_allocations_of_this_thread();
    for (int step = 0; step < 3; ++step) executor.run(stage);
    EXPECT_EQ(count_allocations_of_this_thread(), before);
  });
}

// Ranks that disagree about a tensor's size.
class ShrinkingStage final : public PipelineStage {
 public:
  explicit ShrinkingStage(int rank) : values_(static_cast<size_t>(rank == 0 ? 3 : 4)) {}
  Tensor forward_buffer(int64_t, int64_t) override { return tensor(); }
  Tensor backward_buffer(int64_t, int64_t) override { return tensor(); }
  Tensor forward(const PipelineAction&) override { return tensor(); }
  Tensor backward(const PipelineAction&, bool) override { return tensor(); }
  void backward_weight(const PipelineAction&, bool) override {}

 private:
  Tensor tensor() { return cpu_tensor(values_.data(), {static_cast<int64_t>(values_.size())}); }
  std::vector<float> values_;
};

TEST(PipelineRun, SizesThatDoNotFitAreNamed) {
  const auto run = [] {
    run_thread_ranks(2, [](ThreadRank& rank) {
      const auto pp = rank.group("pp", {0, 1});
      ShrinkingStage stage(rank.rank());
      run_pipeline(actions_of(*pp, {Kind::gpipe, false, 1, 1}), stage, *pp, 1);
    });
  };
  EXPECT_THAT(run, testing::ThrowsMessage<Error>(
                       testing::AllOf(testing::HasSubstr("group pp: rank 0 sends 12 bytes"),
                                      testing::HasSubstr("rank 1 expects 16"))));
}

}  // namespace
}  // namespace phalanx::test
