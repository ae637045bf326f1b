// What process groups tell a flight recorder: every collective and message of every rank.
#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <map>

#include "kernels/base/flight_recorder.h"
#include "parallel/thread_process_group.h"

namespace phalanx::test {
namespace {

using testing::ElementsAre;
using testing::Pair;

/// The ranks are threads, so that all write into one record.
class FlightOfGroups : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }

  /// (kind, operation, sequence, peer) -> how many ranks have entered it.
  std::map<std::tuple<FlightKind, std::string, int64_t, int>, int> counts() const {
    std::map<std::tuple<FlightKind, std::string, int64_t, int>, int> found;
    for (const FlightEntry& entry : recorder_.record().history) {
      EXPECT_STREQ(entry.group.data(), "world");
      ++found[{entry.kind, entry.what.data(), entry.sequence, entry.peer}];
    }
    return found;
  }

  const std::string path_ = testing::TempDir() + "/flight_groups_" + std::to_string(getpid());
  FlightRecorder recorder_{path_, {}};
};

TEST_F(FlightOfGroups, CollectivesAreNumberedInTheirOrderWhateverTheyAre) {
  run_thread_ranks(3, [](ThreadRank& rank) {
    const auto group = rank.world_group();
    std::vector<float> values(6, 1.0F);
    group->barrier();
    group->all_reduce(1.0, ReduceOp::sum);
    group->broadcast(cpu_tensor(values.data(), {6}), 0);
    group->reduce_scatter_in_place(cpu_tensor(values.data(), {6}), std::vector<int64_t>{2, 2, 2});
  });
  using enum FlightKind;
  EXPECT_THAT(counts(), ElementsAre(Pair(std::tuple(collective, "all_reduce", 2, -1), 3),
                                    Pair(std::tuple(collective, "barrier", 1, -1), 3),
                                    Pair(std::tuple(collective, "broadcast", 3, -1), 3),
                                    Pair(std::tuple(collective, "reduce_scatter", 4, -1), 3)));
  EXPECT_EQ(recorder_.record().groups.at(0).collectives, 4);
}

TEST_F(FlightOfGroups, AsynchronousOnesAreEnteredAndThenWaitedForUnderOneNumber) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    const auto group = rank.world_group();
    std::vector<float> values(4, 1.0F);
    const std::vector<int64_t> halves{2, 2};
    const auto scatter =
        group->reduce_scatter_in_place_async(cpu_tensor(values.data(), {4}), halves);
    group->barrier();
    scatter->wait();
  });
  using enum FlightKind;
  EXPECT_THAT(counts(), ElementsAre(Pair(std::tuple(collective, "barrier", 2, -1), 2),
                                    Pair(std::tuple(collective, "reduce_scatter", 1, -1), 2),
                                    Pair(std::tuple(wait, "reduce_scatter", 1, -1), 2)));
}

TEST_F(FlightOfGroups, MessagesNameWhoIsToSend) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    const auto group = rank.world_group();
    group->barrier();
    float here = 1, there = 0;
    const std::vector<Exchange> messages{{.peer = 1 - rank.rank(),
                                          .send = cpu_tensor(&here, {1}),
                                          .receive = cpu_tensor(&there, {1})}};
    group->exchange(messages);
  });
  using enum FlightKind;
  EXPECT_THAT(counts(), ElementsAre(Pair(std::tuple(collective, "barrier", 1, -1), 2),
                                    Pair(std::tuple(exchange, "exchange", 1, 0), 1),
                                    Pair(std::tuple(exchange, "exchange", 1, 1), 1),
                                    Pair(std::tuple(exchange_wait, "exchange", 1, 0), 1),
                                    Pair(std::tuple(exchange_wait, "exchange", 1, 1), 1)));
  EXPECT_EQ(recorder_.record().groups.at(0).exchanges, 1);
  EXPECT_EQ(recorder_.record().groups.at(0).collectives, 1);
}

TEST_F(FlightOfGroups, EmptyCollectivesAreNumberedThoughNothingIsWaitedFor) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    const auto group = rank.world_group();
    group->all_reduce(Tensor{nullptr, {0}, DType::f32, Device::cpu}, ReduceOp::sum);
    group->barrier();
  });
  EXPECT_THAT(counts(), ElementsAre(Pair(std::tuple(FlightKind::collective, "barrier", 2, -1), 2)));
}

TEST_F(FlightOfGroups, AGroupOfOneTellsNothing) {
  run_thread_ranks(1, [](ThreadRank& rank) {
    const auto group = rank.world_group();
    group->barrier();
    group->all_reduce(1.0, ReduceOp::sum);
  });
  EXPECT_THAT(counts(), testing::IsEmpty());
}

}  // namespace
}  // namespace phalanx::test
