// Collectives on thread ranks: against their definitions, and what happens when a rank fails.
#include "parallel/process_group.h"

#include <gmock/gmock.h>

#include "parallel/thread_process_group.h"
#include "tests/parallel/group_checks.h"

namespace phalanx::test {
namespace {

using testing::HasSubstr;

class ThreadGroups : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, ThreadGroups, testing::Values(1, 2, 3, 4, 8));

TEST_P(ThreadGroups, AllCollectives) {
  run_thread_ranks(GetParam(), [](ThreadRank& rank) {
    const auto group = rank.world_group();
    check_all_collectives(*group);
  });
}

TEST(ThreadGroups, SplitAlongMeshAxesInBothViews) {
  const ParallelConfig config{
      .tensor_model_parallel_size = 2, .context_parallel_size = 2, .expert_model_parallel_size = 4};
  run_thread_ranks(8, [&](ThreadRank& rank) {
    const ProcessGroups groups = rank.process_groups(DeviceMesh(config, 8));
    check(groups.tp->size() == 2 && groups.cp->size() == 2 && groups.dp->size() == 2 &&
              groups.dp_cp->size() == 4 && groups.pp->size() == 1 && groups.ep->size() == 4 &&
              groups.expert_dp->size() == 2 && groups.world->size() == 8,
          "wrong group sizes");
    for (ProcessGroup* group : {groups.tp.get(), groups.dp_cp.get(), groups.ep.get()})
      check_all_collectives(*group);
    // tp ranks are neighbours, so the sum over tp of world ranks is 4 * (rank / 2) + 1.
    const int64_t sum = groups.tp->all_reduce(int64_t{rank.rank()}, ReduceOp::sum);
    check(sum == 4 * (rank.rank() / 2) + 1, "tp is not made of neighbours: ", sum);
  });
}

TEST(ThreadGroups, ARankThatThrowsPoisonsTheOthersAndItsErrorComesOut) {
  std::atomic<int> poisoned = 0;
  const auto run = [&] {
    run_thread_ranks(4, [&](ThreadRank& rank) {
      const auto group = rank.world_group();
      group->barrier();
      if (rank.rank() == 2) fail("rank two is out of paper");
      try {
        group->all_reduce(1.0, ReduceOp::sum);
      } catch (const PoisonedError&) {
        ++poisoned;
        throw;
      }
    });
  };
  EXPECT_THAT(run, testing::ThrowsMessage<Error>(HasSubstr("out of paper")));
  EXPECT_EQ(poisoned, 3);
}

TEST(ThreadGroups, PoisonReachesAsynchronousWork) {
  const auto run = [] {
    run_thread_ranks(3, [](ThreadRank& rank) {
      std::vector<float> x(9);
      const std::vector<int64_t> counts{3, 3, 3};
      const auto group = rank.world_group();
      if (rank.rank() == 0) fail("rank zero never came");
      const PendingWork work = group->reduce_scatter_in_place_async(flat(x), counts);
      work->wait();
    });
  };
  EXPECT_THAT(run, testing::ThrowsMessage<Error>(HasSubstr("rank zero never came")));
}

TEST(ThreadGroups, ARankThatDropsItsWorkDoesNotHang) {
  const auto run = [] {
    run_thread_ranks(2, [](ThreadRank& rank) {
      std::vector<float> x(4);
      const std::vector<int64_t> counts{2, 2};
      const auto group = rank.world_group();
      if (rank.rank() == 0) {
        const PendingWork work = group->reduce_scatter_in_place_async(flat(x), counts);
        fail("failed while reducing");
      }
      group->barrier();
    });
  };
  EXPECT_THAT(run, testing::ThrowsMessage<Error>(HasSubstr("failed while reducing")));
}

TEST(ThreadGroups, MessagesEndWhenTheOtherEndFails) {
  for (const bool sends : {false, true}) {
    std::atomic<int> poisoned = 0;
    const auto run = [&] {
      run_thread_ranks(3, [&](ThreadRank& rank) {
        const auto group = rank.world_group();
        if (rank.rank() == 0) fail("rank zero has no stamps");
        std::vector<float> x(4);
        const Exchange message{
            .peer = 0, .send = sends ? flat(x) : Tensor{}, .receive = sends ? Tensor{} : flat(x)};
        const PendingWork work = group->exchange_async({&message, 1});
        try {
          work->wait();
        } catch (const PoisonedError&) {
          ++poisoned;
          throw;
        }
      });
    };
    EXPECT_THAT(run, testing::ThrowsMessage<Error>(HasSubstr("no stamps")));
    EXPECT_EQ(poisoned, 2);
  }
}

TEST(ThreadGroups, ADroppedMessageIsNeitherReadNorWritten) {
  const auto run = [] {
    run_thread_ranks(2, [](ThreadRank& rank) {
      const auto group = rank.world_group();
      std::vector<float> x(1000, 1.0F);
      const Exchange message{.peer = 1 - rank.rank(),
                             .send = rank.rank() == 0 ? flat(x) : Tensor{},
                             .receive = rank.rank() == 0 ? Tensor{} : flat(x)};
      if (rank.rank() == 0) {
        { const PendingWork dropped = group->exchange_async({&message, 1}); }
        fail("rank zero took its letter back");
      }
      while (true) group->barrier();
    });
  };
  EXPECT_THAT(run, testing::ThrowsMessage<Error>(HasSubstr("took its letter back")));
}

TEST(ThreadGroups, MessagesOfDifferentSizesAreNamed) {
  std::atomic<int> told = 0;
  const auto run = [&] {
    run_thread_ranks(2, [&](ThreadRank& rank) {
      const auto group = rank.world_group();
      std::vector<float> x(static_cast<size_t>(2 + rank.rank()));
      const Exchange message{.peer = 1 - rank.rank(),
                             .send = rank.rank() == 0 ? flat(x) : Tensor{},
                             .receive = rank.rank() == 0 ? Tensor{} : flat(x),
                             .channel = 5};
      EXPECT_THAT(
          [&] {
            group->exchange({&message, 1});
          },
          testing::ThrowsMessage<Error>(
              HasSubstr("group world: rank 0 sends 8 bytes on channel 5, rank 1 expects 12")));
      ++told;
    });
  };
  run();
  EXPECT_EQ(told, 2);
}

TEST(ThreadGroups, MismatchedCallsAreNamed) {
  const auto run = [] {
    run_thread_ranks(2, [](ThreadRank& rank) {
      const auto group = rank.world_group();
      std::vector<float> x(4);
      if (rank.rank() == 0) {
        group->all_reduce(flat(x), ReduceOp::sum);
      } else {
        group->broadcast(flat(x), 0);
      }
    });
  };
  EXPECT_THAT(run, testing::ThrowsMessage<Error>(
                       testing::AllOf(HasSubstr("all_reduce"), HasSubstr("broadcast"))));
}

TEST(ThreadGroups, WrongShapesNameGroupAndNumbers) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    const auto group = rank.world_group();
    std::vector<float> x(5);
    EXPECT_THAT([&] { group->reduce_scatter(flat(x).slice(0, 2), flat(x)); },
                testing::ThrowsMessage<Error>(testing::AllOf(HasSubstr("world"), HasSubstr("5"))));
    const std::vector<int64_t> counts{2, 2};
    EXPECT_THAT([&] { group->all_gather_in_place(flat(x), counts); },
                testing::ThrowsMessage<Error>(HasSubstr("sum to 4 for 5 elements")));
    EXPECT_THROW(group->broadcast(flat(x), 2), Error);
    const Exchange message{.peer = 1 - rank.rank(), .send = flat(x), .channel = kMaxChannel + 1};
    EXPECT_THAT(
        [&] {
          group->exchange({&message, 1});
        },
        testing::ThrowsMessage<Error>(HasSubstr("channel 32767")));
  });
}

// bf16 sums round once: 1 + 2^-9 * 8 is lost term by term but not in f32.
TEST(ThreadGroups, BFloat16SumsAreKeptInF32) {
  run_thread_ranks(8, [](ThreadRank& rank) {
    const auto group = rank.world_group();
    std::vector<BFloat16> x{BFloat16(rank.rank() == 0 ? 1.0F : 0x1p-9F)};
    group->all_reduce(flat(x), ReduceOp::sum);
    EXPECT_EQ(static_cast<float>(x[0]), static_cast<float>(BFloat16(1.0F + 7 * 0x1p-9F)));
    EXPECT_NE(static_cast<float>(x[0]), 1.0F);
  });
}

}  // namespace
}  // namespace phalanx::test
