// Times of steps, and which node they call slow.
#include "core/train/node_speed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>

#include "core/train/node_name.h"
#include "core/train/rank_times.h"
#include "parallel/thread_process_group.h"

namespace phalanx {
namespace {

using std::chrono::milliseconds;

TEST(NodeName, SlurmsNameComesFirstAndDomainsAreLeftOut) {
  setenv("SLURMD_NODENAME", "node7", 1);
  EXPECT_EQ(node_name(), "node7");
  unsetenv("SLURMD_NODENAME");
  EXPECT_FALSE(node_name().empty());
  EXPECT_EQ(node_name().find('.'), std::string::npos);
}

TEST(RankPlaces, NodesAreNumberedByTheirFirstRanks) {
  const RankPlaces places = make_rank_places({"b", "a", "b", "c"}, {0, 0, 1, 1});
  EXPECT_THAT(places.nodes, testing::ElementsAre("b", "a", "c"));
  EXPECT_THAT(places.node, testing::ElementsAre(0, 1, 0, 2));
  EXPECT_EQ(places.node_name_of(3), "c");
}

TEST(RankPlaces, AreTheSameOnAllRanks) {
  const ParallelConfig parallel{.pipeline_model_parallel_size = 2};
  run_thread_ranks(4, [&](ThreadRank& rank) {
    const DeviceMesh mesh(parallel, rank.size());
    const ProcessGroups groups = rank.process_groups(mesh);
    // Names of different lengths.
    const std::string name = std::string(static_cast<size_t>(1 + rank.rank() / 2), 'n');
    const RankPlaces places = gather_rank_places(groups, name);
    EXPECT_THAT(places.nodes, testing::ElementsAre("n", "nn"));
    EXPECT_THAT(places.node, testing::ElementsAre(0, 0, 1, 1));
    EXPECT_EQ(places.stage[static_cast<size_t>(rank.rank())], groups.pp->rank());
    EXPECT_EQ(std::ranges::count(places.stage, 1), 2);
  });
}

TEST(StepClock, TellsDataWaitingAndSavingApart) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    const ProcessGroups groups = rank.process_groups(DeviceMesh({}, rank.size()));
    StepClock clock(groups);
    clock.begin_save();
    std::this_thread::sleep_for(milliseconds(20));
    clock.end_save();
    EXPECT_GE(clock.save_seconds(), 0.02);
    groups.world->barrier();  // before the step: not its waiting
    clock.begin_step();
    std::this_thread::sleep_for(milliseconds(30));
    clock.data_is_there();
    std::this_thread::sleep_for(milliseconds(rank.rank() == 1 ? 200 : 0));
    groups.dp->barrier();
    const StepTimes times = clock.end_step();
    EXPECT_GE(times.data, 0.03);
    EXPECT_GE(times.save, 0.02);
    EXPECT_GE(times.step, 0.23);
    EXPECT_DOUBLE_EQ(times.compute(), times.step - times.data - times.wait);
    if (rank.rank() == 1) {
      EXPECT_GE(times.compute(), 0.2);
    } else {
      EXPECT_GT(times.wait, 0.05);  // the other one's 200 ms, as far as this thread came in time
    }
    clock.begin_step();
    EXPECT_EQ(clock.end_step().save, 0);
  });
}

TEST(StepClock, KnowsTheProcessAndTheTime) {
  EXPECT_GT(unix_seconds(), 1.7e9);
  const double seconds = process_seconds();
  EXPECT_GE(seconds, 0);
  EXPECT_LT(seconds, 3600);
  std::this_thread::sleep_for(milliseconds(60));  // clock ticks are 10 ms
  EXPECT_GE(process_seconds(), seconds + 0.03);
}

StepTimes busy(double compute, double step = 1) {
  return {.step = step, .data = 0, .wait = step - compute};
}

TEST(SlowestNode, IsFoundAmongNodesOfTheSameStage) {
  // Ranks 0-3 are stage 0, 4-7 stage 1, which has twice the layers; two ranks a node.
  const RankPlaces places =
      make_rank_places({"a", "a", "b", "b", "c", "c", "d", "d"}, {0, 0, 0, 0, 1, 1, 1, 1});
  const auto slow = slowest_node(
      {busy(0.3), busy(0.3), busy(0.3), busy(0.3), busy(0.6), busy(0.6), busy(0.7), busy(0.9)}, 1,
      places);
  ASSERT_TRUE(slow);
  EXPECT_EQ(places.nodes[static_cast<size_t>(slow->node)], "d");
  EXPECT_NEAR(slow->excess, 0.2, 1e-12);  // mean 0.8 against 0.6, the lower of the two
  EXPECT_NEAR(slow->percent, 20, 1e-9);
  EXPECT_EQ(slow_node_text(*slow, places),
            "d is slow: its ranks compute 200 ms a step more than the median node's (20 % of the "
            "step)");
}

TEST(SlowestNode, SumsAreOfSeveralSteps) {
  const RankPlaces places = make_rank_places({"a", "b", "c"}, {0, 0, 0});
  const auto slow = slowest_node({busy(1, 10), busy(1, 10), busy(2, 10)}, 10, places);
  ASSERT_TRUE(slow);
  EXPECT_NEAR(slow->excess, 0.1, 1e-12);
  EXPECT_NEAR(slow->percent, 10, 1e-9);
}

TEST(SlowestNode, OneNodePerStageCannotBeCompared) {
  const RankPlaces places = make_rank_places({"a", "b"}, {0, 1});
  EXPECT_FALSE(slowest_node({busy(0.1), busy(0.9)}, 1, places));
  EXPECT_FALSE(slowest_node({busy(0.5)}, 1, make_rank_places({"a"}, {0})));
}

TEST(SlowNodeWatch, SpeaksWhenItLastsAndNotAgainForTenMinutes) {
  SlowNodeWatch watch;
  const SlowNode slow{.node = 3, .excess = 0.1, .percent = 6};
  EXPECT_FALSE(watch.look(slow, 0)) << "one interval may be chance";
  EXPECT_TRUE(watch.look(slow, 10));
  EXPECT_FALSE(watch.look(slow, 20));
  EXPECT_FALSE(watch.look(slow, 609));
  EXPECT_TRUE(watch.look(slow, 611));
  const SlowNode other{.node = 1, .excess = 0.1, .percent = 50};
  EXPECT_FALSE(watch.look(other, 620));
  EXPECT_TRUE(watch.look(other, 630)) << "each node has its own silence";
  EXPECT_FALSE(watch.look(std::nullopt, 2000));
  EXPECT_FALSE(watch.look(slow, 2010)) << "not twice in a row";
}

TEST(SlowNodeWatch, FivePercentIsTheLimit) {
  SlowNodeWatch watch;
  const SlowNode slow{.node = 0, .excess = 1, .percent = 5};
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(watch.look(slow, i * 1000.0));
}

TEST(RankTimes, GathersSumsOfAllRanksAndBeginsAnew) {
  run_thread_ranks(3, [](ThreadRank& rank) {
    const auto world = rank.world_group();
    RankTimes times(*world);
    const double own = rank.rank();
    times.add({.step = 1000});  // the first step is left out
    EXPECT_FALSE(times.is_due());
    for (int step = 0; step < 4; ++step)
      times.add({.step = 1, .data = 0.1 * own, .wait = 0.2, .save = own == 2 ? 0.5 : 0});
    RankTimesReport report = times.gather();
    EXPECT_EQ(report.steps, 4);
    ASSERT_EQ(report.times.size(), 3U);
    EXPECT_NEAR(report.times[2].compute(), 4 * (1 - 0.2 - 0.2), 1e-12);
    const RankPlaces places = make_rank_places({"a", "a", "b"}, {0, 0, 0});
    const auto json = rank_times_json(report, 5, places);
    EXPECT_EQ(json["step"], 5);
    EXPECT_NEAR(json["compute"]["min"].get<double>(), 0.6, 1e-12);
    EXPECT_NEAR(json["compute"]["median"].get<double>(), 0.7, 1e-12);
    EXPECT_NEAR(json["compute"]["max"].get<double>(), 0.8, 1e-12);
    EXPECT_EQ(json["compute"]["slowest_rank"], 0);
    EXPECT_EQ(json["data"]["slowest_node"], "b");
    EXPECT_NEAR(json["save"]["max"].get<double>(), 0.5, 1e-12);
    times.add({.step = 2});
    report = times.gather();
    EXPECT_EQ(report.steps, 1);
    EXPECT_EQ(report.times[0].step, 2);
  });
}

}  // namespace
}  // namespace phalanx
