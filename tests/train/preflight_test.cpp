// The test of machines: what it measures, what it calls slow, and that wrong bytes end the run.
#include "core/train/preflight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "kernels/base/error.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/train/tiny_run.h"

namespace phalanx {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// `count` equal nodes with all links of `link_rounds`.
PreflightReport equal_nodes(int count) {
  PreflightReport report{.nodes = {}, .links = {}, .seconds = 2};
  for (int i = 0; i < count; ++i)
    report.nodes.push_back({.node = "n" + std::to_string(i),
                            .gflops = 100,
                            .slowest_rank = 8 * i,
                            .copy_gbps = 10,
                            .disk_gbps = 1});
  for (const LinkRound& round : link_rounds(count))
    for (const auto& [a, b] : round.pairs)
      report.links.push_back({.a = a, .b = b, .gbps = 5, .microseconds = 20});
  return report;
}

TEST(PreflightOutliers, EqualNodesHaveNone) {
  for (const int count : {1, 2, 3, 16}) EXPECT_TRUE(preflight_outliers(equal_nodes(count)).empty());
}

TEST(PreflightOutliers, RatesBelowSeventyPercentOfTheMedian) {
  PreflightReport report = equal_nodes(4);
  report.nodes[2].gflops = 71;
  EXPECT_TRUE(preflight_outliers(report).empty());
  report.nodes[2].gflops = 69;
  report.nodes[0].copy_gbps = 3;
  report.nodes[1].disk_gbps = 0.1;
  EXPECT_THAT(preflight_outliers(report),
              ElementsAre("n2 (rank 16) multiplies matrices at 69 GFLOP/s, 69 % of the median 100",
                          "n0 copies memory at 3 GB/s, 30 % of the median 10",
                          "n1 writes the run folder at 0.1 GB/s, 10 % of the median 1"));
}

TEST(PreflightOutliers, OfTwoNodesTheSlowerOneIsNamed) {
  PreflightReport report = equal_nodes(2);
  report.nodes[1].gflops = 50;
  EXPECT_THAT(preflight_outliers(report), ElementsAre(HasSubstr("n1 (rank 8)")));
}

TEST(PreflightOutliers, OneSlowLinkIsNotANodesFault) {
  PreflightReport report = equal_nodes(8);
  LinkMeasure& link = report.links[3];
  link.gbps = 1;
  const std::string ends = "n" + std::to_string(link.a) + " and n" + std::to_string(link.b);
  EXPECT_THAT(preflight_outliers(report), ElementsAre("the link between " + ends +
                                                      " carries 1 GB/s each way, 20 % of the "
                                                      "median 5"));
  link.gbps = 5;
  link.microseconds = 61;
  EXPECT_THAT(preflight_outliers(report), ElementsAre("the link between " + ends +
                                                      " takes 61 us for a short message, the "
                                                      "median is 20"));
}

TEST(PreflightOutliers, ANodeIsBlamedIfMostOfItsLinksAreSlow) {
  PreflightReport report = equal_nodes(8);
  int slow = 0;
  for (LinkMeasure& link : report.links)
    if (link.a == 5 || link.b == 5) {
      link.gbps = 1;
      ++slow;
    }
  ASSERT_GT(slow, 2);
  EXPECT_THAT(preflight_outliers(report), ElementsAre(HasSubstr("n5: ")));
}

TEST(LinkRounds, PairsOfARoundDoNotShareNodes) {
  for (int count = 1; count <= 40; ++count) {
    std::vector<int> links(static_cast<size_t>(count));
    std::set<std::pair<int, int>> all;
    int distance = 0;
    for (const LinkRound& round : link_rounds(count)) {
      EXPECT_GE(round.distance, distance);
      distance = round.distance;
      std::set<int> busy;
      for (const auto& [a, b] : round.pairs) {
        EXPECT_TRUE(busy.insert(a).second && busy.insert(b).second) << count;
        EXPECT_TRUE(all.insert(std::minmax(a, b)).second) << count << ": a link is tested twice";
        ++links[static_cast<size_t>(a)];
        ++links[static_cast<size_t>(b)];
      }
    }
    if (count < 3) continue;
    for (const int number : links) EXPECT_GE(number, 2) << count;
  }
  // Few rounds, however many nodes: at most three for each doubling.
  EXPECT_LE(link_rounds(1000).size(), 3U * 9);
}

TEST(PreflightTable, HasAtMostTenLinesForAnyNumberOfNodes) {
  for (const int count : {1, 2, 500}) {
    PreflightReport report = equal_nodes(count);
    for (size_t i = 0; i < report.nodes.size(); i += 3) report.nodes[i].gflops = 20;
    const auto outliers = preflight_outliers(report);
    const std::string table = preflight_table(report, outliers);
    EXPECT_LE(std::ranges::count(table, '\n'), 9) << table;
    EXPECT_THAT(table, HasSubstr("GFLOP/s"));
    EXPECT_EQ(count > 1, table.find("links") != std::string::npos) << table;
    EXPECT_EQ(count > 1, table.find("SLOW: n0") != std::string::npos) << table;
    EXPECT_EQ(count == 500, table.find("and 164 more") != std::string::npos) << table;
    EXPECT_EQ(preflight_json(report, outliers)["nodes"].size(), report.nodes.size());
  }
}

TEST(Preflight, IsForJobsOfSeveralRanksUnlessAskedFor) {
  EXPECT_TRUE(wants_preflight(PreflightChoice::automatic, 2, "17"));
  EXPECT_FALSE(wants_preflight(PreflightChoice::automatic, 1, "17"));
  EXPECT_FALSE(wants_preflight(PreflightChoice::automatic, 2, nullptr));
  EXPECT_TRUE(wants_preflight(PreflightChoice::on, 1, nullptr));
  EXPECT_FALSE(wants_preflight(PreflightChoice::off, 2, "17"));
}

TEST(Preflight, FindsTheFirstWrongByte) {
  std::vector<uint64_t> words(100);
  fill_pattern(words, 3);
  EXPECT_EQ(first_wrong_byte(words, 3), -1);
  EXPECT_EQ(first_wrong_byte(words, 4), 0);
  reinterpret_cast<uint8_t*>(words.data())[77] ^= 1;
  EXPECT_EQ(first_wrong_byte(words, 3), 77);
}

/// Preflight on `names.size()` ranks of these nodes; the report, which is the same on all.
/// Ranks' worlds pass through `wrap`.
template <class Wrap>
PreflightReport test_machines(const std::vector<std::string>& names, const std::string& folder,
                              const Wrap& wrap) {
  std::vector<PreflightReport> reports(names.size());
  run_thread_ranks(static_cast<int>(names.size()), [&](ThreadRank& rank) {
    const std::unique_ptr<ProcessGroup> world = wrap(rank.world_group());
    CpuBackend backend(1);
    const RankPlaces places = make_rank_places(names, std::vector<int>(names.size()));
    const double flops = 1e9 * (10 - rank.rank());
    reports[static_cast<size_t>(rank.rank())] = run_preflight(
        backend, *world, places, {.peak_flops = flops, .room = 1 << 20, .run_dir = folder});
  });
  for (const PreflightReport& report : reports)
    EXPECT_EQ(preflight_json(report, {}), preflight_json(reports[0], {})) << "ranks differ";
  return reports[0];
}

constexpr auto kAsItIs = [](std::unique_ptr<ProcessGroup> world) { return world; };

TEST(Preflight, MeasuresEveryNodeAndLeavesNothingBehind) {
  const std::string folder = fresh_folder("preflight") + "/run";
  const PreflightReport report = test_machines({"a", "a", "b", "c"}, folder, kAsItIs);
  ASSERT_EQ(report.nodes.size(), 3U);
  for (const NodeMeasure& node : report.nodes) {
    EXPECT_GT(node.copy_gbps, 0.001);
    EXPECT_GT(node.disk_gbps, 0);
    EXPECT_GT(node.link_gbps, 0);
  }
  EXPECT_EQ(report.nodes[0].gflops, 9);  // of rank 1, the slower one of the node
  EXPECT_EQ(report.nodes[0].slowest_rank, 1);
  EXPECT_EQ(report.nodes[2].gflops, 7);
  EXPECT_EQ(report.links.size(), 3U);
  EXPECT_GT(report.seconds, 0);
  EXPECT_TRUE(std::filesystem::is_empty(folder));
}

TEST(Preflight, OneNodeHasNoLinks) {
  const PreflightReport report = test_machines({"a"}, fresh_folder("preflight_one"), kAsItIs);
  EXPECT_TRUE(report.links.empty());
  EXPECT_EQ(report.nodes[0].link_gbps, 0);
  EXPECT_GT(report.nodes[0].disk_gbps, 0);
}

/// A world in which rank 1 receives long messages with one bit changed.
class BitFlippingGroup final : public ProcessGroup {
 public:
  explicit BitFlippingGroup(std::unique_ptr<ProcessGroup> inner)
      : ProcessGroup(inner->name(), inner->rank(), inner->size()), inner_(std::move(inner)) {}

 private:
  using Counts = std::span<const int64_t>;
  void all_reduce_impl(const Tensor& x, ReduceOp op) override { inner_->all_reduce(x, op); }
  void all_gather_impl(const Tensor& out, Counts counts) override {
    inner_->all_gather_in_place(out, counts);
  }
  void reduce_scatter_impl(const Tensor&, Counts) override {}
  void all_to_all_impl(const Tensor&, const Tensor&, Counts, Counts) override {}
  void broadcast_impl(const Tensor& x, int root) override { inner_->broadcast(x, root); }
  PendingWork exchange_async_impl(std::span<const Exchange> messages) override {
    inner_->exchange(messages);
    for (const Exchange& message : messages)
      if (rank() == 1 && message.receive.numel() > 1000) message.receive.as<int64_t>()[900] ^= 256;
    return completed_work();
  }
  void barrier_impl() override { inner_->barrier(); }
  PendingWork reduce_scatter_async_impl(const Tensor&, Counts) override { return completed_work(); }
  PendingWork all_gather_async_impl(const Tensor&, Counts) override { return completed_work(); }

  std::unique_ptr<ProcessGroup> inner_;
};

std::string refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Preflight, AMessageWithAWrongByteNamesBothNodes) {
  const std::string text = refusal([] {
    test_machines({"good", "bad"}, fresh_folder("preflight_bits"),
                  [](std::unique_ptr<ProcessGroup> world) {
                    return std::make_unique<BitFlippingGroup>(std::move(world));
                  });
  });
  EXPECT_THAT(text, HasSubstr("a message from good to bad arrived with a wrong byte at 7201"));
}

TEST(Preflight, ARunFolderThatCannotBeUsedNamesTheNode) {
  const std::string folder = fresh_folder("preflight_folder");
  std::ofstream(folder + "/file") << "in the way";
  EXPECT_THAT(refusal([&] { test_machines({"a"}, folder + "/file", kAsItIs); }),
              HasSubstr(folder + "/file"));
}

}  // namespace
}  // namespace phalanx
