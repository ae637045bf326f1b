// Points of studies: node counts x layouts, what is refused and why, what auto picks.
#include "cluster/study_points.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cluster/study_layouts.h"
#include "tests/cluster/study_fixture.h"

namespace phalanx::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Words = std::vector<std::string>;

StudyOptions strong(const std::string& nodes, const std::string& layouts) {
  return {.nodes = nodes, .strong = true, .layouts = layouts, .study_dir = "/tmp/study"};
}

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "nothing was refused";
}

std::vector<StudyPoint> points(const StudyOptions& options, int64_t ranks_per_node = 1) {
  return study_points(options, ranks_per_node, small_run_arguments(), plain_needs());
}

TEST(NodeCounts, AreNumbersInAnyOrder) {
  EXPECT_THAT(parse_node_counts("4, 1,2"), ElementsAre(1, 2, 4));
  for (const char* wrong : {"", "0", "1,-2", "1,two", "2,2", "1x", "99999999999999999999"})
    EXPECT_THAT(refusal([&] { parse_node_counts(wrong); }), HasSubstr("nodes")) << wrong;
}

TEST(LayoutWords, AreOptionsOfTheProgram) {
  EXPECT_THAT(layout_arguments("tp2 pp4  sp"),
              ElementsAre("--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size",
                          "4", "--sequence-parallel"));
  const std::string all =
      "tp1 pp1 cp1 ep1 etp1 vp1 mb2 zero1 zero3 gpipe 1f1b interleaved zero-bubble "
      "recompute=none recompute=attention recompute=layer sp";
  Words arguments = layout_arguments(all);
  arguments.insert(arguments.end(), {"--run-dir", "run"});
  const RunConfig config = plain_needs().configuration(arguments);
  EXPECT_EQ(config.training.micro_batch_size, 2);
  EXPECT_EQ(config.parallel.pipeline_schedule, PipelineScheduleKind::zero_bubble);
  EXPECT_EQ(config.parallel.data_parallel_sharding_strategy,
            DataParallelSharding::optim_grads_params);
  EXPECT_THAT(config.parallel.recompute, ElementsAre("layer"));
  EXPECT_TRUE(config.parallel.sequence_parallel);
  for (const char* wrong : {"tp", "tp0", "tp-1", "qp2", "tp2x", "2"})
    EXPECT_THAT(refusal([&] { layout_arguments(wrong); }),
                HasSubstr(std::string("'") + wrong + "' is no word of a layout"));
}

TEST(StudyPoints, AreNodeCountsTimesLayouts) {
  const std::vector<StudyPoint> list = points(strong("2,1", "tp1 pp1,pp2"), 2);
  ASSERT_THAT(list, SizeIs(4));
  EXPECT_EQ(list[0].name, "nodes-001_tp1-pp1");
  EXPECT_EQ(list[3].name, "nodes-002_pp2");
  EXPECT_EQ(list[3].ranks, 4);
  for (const StudyPoint& point : list) {
    EXPECT_THAT(point.problems, IsEmpty());
    const RunConfig config = plain_needs().configuration(point.arguments);
    EXPECT_EQ(config.training.run_dir, "/tmp/study/" + point.name);
    EXPECT_EQ(config.training.global_batch_size, 8);
    EXPECT_EQ(config.checkpoint.save_interval, 0);
    EXPECT_EQ(config.training.train_iters, 9) << "the user's, not the study's";
    EXPECT_GT(point.forecast.memory_bytes, 0);
    EXPECT_EQ(point.forecast.bubble > 0, point.layout == "pp2");
  }
}

TEST(StudyPoints, OwnDefaultsStandBackForTheCommandLine) {
  Words arguments = small_run_arguments();
  const auto iters = std::ranges::find(arguments, "--train-iters");
  arguments.erase(iters, iters + 2);
  const StudyOptions options = strong("1", "none");
  EXPECT_EQ(study_points(options, 1, arguments, plain_needs())[0].train_iters, kStudySteps);
  arguments.insert(arguments.end(), {"--save-interval", "5"});
  const StudyPoint point = study_points(options, 1, arguments, plain_needs())[0];
  EXPECT_EQ(plain_needs().configuration(point.arguments).checkpoint.save_interval, 5);
}

TEST(StudyPoints, WeakScalingGrowsTheBatch) {
  StudyOptions options = strong("2,3,4", "none");
  options.strong = false;
  options.weak = true;
  const std::vector<StudyPoint> list = points(options);
  ASSERT_THAT(list, SizeIs(3));
  EXPECT_EQ(list[0].global_batch_size, 8);
  EXPECT_EQ(list[1].global_batch_size, 12);
  EXPECT_EQ(list[2].global_batch_size, 16);
  options.nodes = "3,4";  // 8 on 3 nodes: neither divisible there nor whole on 4
  EXPECT_THAT(refusal([&] { points(options); }), HasSubstr("try 24"));
}

TEST(StudyPoints, ImpossibleOnesAreListedWithReasons) {
  const std::vector<StudyPoint> list = points(strong("1,3,4", "tp2"));
  ASSERT_THAT(list, SizeIs(3));
  EXPECT_THAT(list[0].problems, ElementsAre(HasSubstr("tensor-model-parallel-size 2 does not")));
  EXPECT_THAT(list[1].problems, testing::Not(IsEmpty()));
  EXPECT_THAT(list[2].problems, IsEmpty());
  EXPECT_THAT(list[0].forecast.bytes, IsEmpty());
}

TEST(StudyPoints, OfWhichNoneCanRunAreRefusedWithAllReasons) {
  const std::string text = refusal([] { points(strong("1,3", "tp2")); });
  EXPECT_THAT(text, HasSubstr("nodes-001_tp2: tensor-model-parallel-size 2"));
  EXPECT_THAT(text, HasSubstr("nodes-003_tp2: "));
}

TEST(StudyPoints, SayWhatTheClusterSaid) {
  StudyNeeds needs = plain_needs();
  needs.problems = [](const StudyPoint& point, const RunConfig&) {
    return point.nodes > 1 ? Words{"nodes 2 is more than the partition has"} : Words{};
  };
  const auto list = study_points(strong("1,2", "none"), 1, small_run_arguments(), needs);
  EXPECT_THAT(list[0].problems, IsEmpty());
  EXPECT_THAT(list[1].problems, ElementsAre("nodes 2 is more than the partition has"));
}

TEST(StudyPoints, OptionsThatMakeNoStudyAreRefused) {
  StudyOptions both = strong("1", "none");
  both.weak = true;
  EXPECT_THAT(refusal([&] { points(both); }), HasSubstr("--strong"));
  StudyOptions nowhere = strong("1", "none");
  nowhere.study_dir = "";
  EXPECT_THAT(refusal([&] { points(nowhere); }), HasSubstr("study-dir is empty"));
  EXPECT_THAT(refusal([] { points(strong("1", "pp1,pp1")); }), HasSubstr("given twice"));
  Words short_run = small_run_arguments();
  short_run.insert(short_run.end(), {"--train-iters", "3"});
  EXPECT_THAT(refusal([&] { study_points(strong("1", "none"), 1, short_run, plain_needs()); }),
              HasSubstr("leaves nothing to measure"));
  Words no_batch = small_run_arguments();
  no_batch.insert(no_batch.end(), {"--global-batch-size", "0"});
  EXPECT_THAT(refusal([&] { study_points(strong("1", "none"), 1, no_batch, plain_needs()); }),
              HasSubstr("needs --global-batch-size"));
}

TEST(AutomaticLayouts, HaveWholeAxesAndKeepTensorsInANode) {
  ModelConfig model;
  model.num_layers = 2;
  EXPECT_THAT(candidate_layouts(model, 2, 2),
              ElementsAre("tp1 pp1", "tp1 pp1 cp2", "tp1 pp1 cp4", "tp1 pp2", "tp1 pp2 cp2",
                          "tp2 pp1 sp", "tp2 pp1 cp2 sp", "tp2 pp2 sp"));
  model.num_experts = 4;
  EXPECT_THAT(candidate_layouts(model, 1, 2), testing::Contains("tp2 pp1 sp ep2"));
}

TEST(AutomaticLayouts, AreTheCheapestThatCanRunOfEveryNodeCount) {
  const std::vector<StudyPoint> list = points(strong("1,2", "auto"), 2);
  ASSERT_THAT(list, SizeIs(2 * kMostLayouts));
  double before = 0;
  for (const StudyPoint& point : list) {
    EXPECT_THAT(point.problems, IsEmpty()) << point.name;
    const RunConfig config = plain_needs().configuration(point.arguments);
    const double cost = layout_cost(config, point.nodes, 2);
    EXPECT_GE(cost, point.name == list[kMostLayouts].name ? 0 : before) << point.name;
    before = cost;
  }
}

TEST(AutomaticLayouts, LeaveOutWhatDoesNotFit) {
  StudyNeeds needs = plain_needs();
  const auto all = study_points(strong("1", "auto"), 4, small_run_arguments(), needs);
  int64_t most = 0;
  for (const StudyPoint& point : all) most = std::max(most, point.forecast.memory_bytes);
  needs.bytes_per_rank = most - 1;
  for (const StudyPoint& point : study_points(strong("1", "auto"), 4, small_run_arguments(), needs))
    EXPECT_LT(point.forecast.memory_bytes, most) << point.name;
}

// The bubble counts, and a byte between nodes ten times what it does inside one.
TEST(AutomaticLayouts, CostIsFlopsOverOneMinusBubblePlusBytes) {
  const auto cost = [](const Words& more, int64_t nodes, int64_t per_node) {
    Words arguments = small_run_arguments();
    arguments.insert(arguments.end(), more.begin(), more.end());
    arguments.insert(arguments.end(), {"--run-dir", "run"});
    return layout_cost(plain_needs().configuration(arguments), nodes, per_node);
  };
  const double alone = cost({}, 1, 1);
  const double inside = cost({}, 1, 2);
  const double across = cost({}, 2, 1);
  EXPECT_NEAR((across - alone / 2) / (inside - alone / 2), 10, 1e-6);
}

}  // namespace
}  // namespace phalanx::test
