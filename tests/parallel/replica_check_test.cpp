// Pieces known to all ranks, and copies that must be equal: no false alarm, and every flipped bit
// is found with tensor, rank and host.
#include "parallel/replica_check.h"

#include <fmt/format.h>

#include <gmock/gmock.h>
#include <unistd.h>

#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/parallel/mesh_store.h"

namespace phalanx::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

/// A rank with its weights.
struct Rank {
  Rank(ThreadRank& rank, const ParallelConfig& config, DType dtype = DType::f32)
      : groups(rank.process_groups(DeviceMesh(config, rank.size()))) {
    register_on_mesh(store, groups, 2);
    store.allocate(backend, dtype);
    store.initialise(backend, 1);
  }
  const Parameter* find(const std::string& name) const {
    for (int64_t i = 0; i < store.size(); ++i)
      if (store[i].spec.name == name) return &store[i];
    return nullptr;
  }
  ProcessGroups groups;
  CpuBackend backend{1};
  ParameterStore store;
};

TEST(PieceTable, EveryRankKnowsWhoHoldsWhat) {
  run_thread_ranks(8, [](ThreadRank& thread) {
    const Rank rank(thread, {.tensor_model_parallel_size = 4});
    const PieceTable table(pieces_of(rank.store), *rank.groups.world);
    const auto holders = [&](const Piece& piece) {
      return table.holders(table.entries()[static_cast<size_t>(table.find(piece))]);
    };
    EXPECT_THAT(holders({"layers.00.q", {8, 6}, {2, 0}, {2, 6}}), ElementsAre(1, 5));
    EXPECT_THAT(holders({"layers.00.kv", {4, 6}, {2, 0}, {2, 6}}), ElementsAre(2, 3, 6, 7));
    EXPECT_THAT(holders({"layers.01.out", {7, 8}, {0, 6}, {7, 2}}), ElementsAre(3, 7));
    EXPECT_THAT(holders({"layers.01.norm", {9}, {0, 0}, {9, 1}}),
                ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
    EXPECT_THROW(holders({"layers.00.q", {8, 6}, {1, 0}, {2, 6}}), Error);
    // Equal lists of the two data-parallel ranks travel once.
    if (thread.rank() >= 4) {
      EXPECT_EQ(rank.groups.world->traffic(Collective::all_gather).bytes, 2 * 8);
    }
  });
}

TEST(PieceTable, UnequalShapesAreAnErrorOnEveryRank) {
  run_thread_ranks(3, [](ThreadRank& rank) {
    const auto world = rank.world_group();
    const int64_t rows = rank.rank() == 1 ? 5 : 4;
    std::string message;
    try {
      const PieceTable table({{"w", {rows, 2}, {0, 0}, {rows, 2}}}, *world);
    } catch (const Error& error) {
      message = error.what();
    }
    EXPECT_THAT(message, HasSubstr("ranks disagree about tensor w: rank 0 has it as [4, 2], rank 1 "
                                   "as [5, 2]"));
  });
}

TEST(PieceTable, RanksWithoutPiecesTakePart) {
  run_thread_ranks(3, [](ThreadRank& rank) {
    const auto world = rank.world_group();
    const Piece piece{"w", {4}, {0, 0}, {4, 1}};
    const PieceTable table(rank.rank() == 1 ? std::vector{piece} : std::vector<Piece>{}, *world);
    ASSERT_EQ(table.entries().size(), 1U);
    EXPECT_THAT(table.holders(table.entries()[0]), ElementsAre(1));
    EXPECT_FALSE(table.has_replicas(table.entries()[0]));
  });
}

struct Case {
  const char* name;
  ParallelConfig config;
  int num_ranks;
  const char* tensor;     // flipped
  int rank;               // here
  const char* complaint;  // expected, after the tensor's name
};

class Flipped : public testing::TestWithParam<Case> {};

/// The error of each rank after flipping one bit of the case's weight.
std::vector<std::string> errors_after_flip(const Case& c, DType dtype) {
  std::vector<std::string> errors(static_cast<size_t>(c.num_ranks));
  run_thread_ranks(c.num_ranks, [&](ThreadRank& thread) {
    const Rank rank(thread, c.config, dtype);
    ProcessGroup& world = *rank.groups.world;
    CpuBackend backend(1);
    ReplicaCheck check(held_weights(rank.store, {}), backend, world);
    check.run();
    const int64_t before = world.traffic(Collective::all_reduce).calls;
    check.run();
    EXPECT_EQ(world.traffic(Collective::all_reduce).calls, before + 1);
    EXPECT_EQ(world.traffic(Collective::all_reduce).bytes, 2 * 16 * check.num_compared());
    EXPECT_EQ(world.traffic(Collective::all_gather).calls, 2);  // of the construction
    if (thread.rank() == c.rank) {
      const Parameter* parameter = rank.find(c.tensor);
      ASSERT_NE(parameter, nullptr);
      static_cast<uint8_t*>(parameter->value.data)[parameter->value.bytes() - 2] ^= 1U;
    }
    try {
      check.run();
    } catch (const Error& error) {
      errors[static_cast<size_t>(thread.rank())] = error.what();
    }
  });
  return errors;
}

TEST_P(Flipped, BitIsNamedOnEveryRank) {
  const Case& c = GetParam();
  std::array<char, 64> host{};
  gethostname(host.data(), host.size() - 1);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::string& error : errors_after_flip(c, dtype)) {
      EXPECT_THAT(error, AllOf(HasSubstr("1 of "), HasSubstr(std::string("\n  ") + c.tensor),
                               HasSubstr(c.complaint), HasSubstr(host.data())));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    ReplicaCheck, Flipped,
    testing::Values(
        Case{"data_parallel", {}, 3, "layers.00.q", 1, "3 copies, odd: rank 1 (host "},
        Case{"two_copies", {}, 2, "layers.00.q", 1, "2 copies, no majority: rank 0 (host "},
        Case{"context_parallel",
             {.context_parallel_size = 3},
             3,
             "layers.01.out",
             2,
             "3 copies, odd: rank 2 (host "},
        Case{"norm_over_tensor_parallel",
             {.tensor_model_parallel_size = 4},
             4,
             "layers.01.norm",
             3,
             "rows 0+9 columns 0+1, 4 copies, odd: rank 3 (host "},
        Case{"shared_key_value_heads",
             {.tensor_model_parallel_size = 4},
             8,
             "layers.00.kv",
             3,
             "rows 2+2 columns 0+6, 4 copies, odd: rank 3 (host "},
        Case{"tied_embedding",
             {.pipeline_model_parallel_size = 2},
             2,
             "embedding.weight",
             1,
             "2 copies, no majority: rank 0 (host "},
        Case{"expert_over_expert_data_parallel",
             {.expert_model_parallel_size = 2},
             6,
             "layers.00.experts.03.up",
             5,
             "3 copies, odd: rank 5 (host "}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(ReplicaCheck, WeightsWithOneCopyAreNobodysBusiness) {
  run_thread_ranks(2, [](ThreadRank& thread) {
    const Rank rank(thread, {.tensor_model_parallel_size = 2, .expert_model_parallel_size = 2});
    CpuBackend backend(1);
    ReplicaCheck check(held_weights(rank.store, {}), backend, *rank.groups.world);
    EXPECT_EQ(check.num_compared(), 2);  // the norms
    if (thread.rank() == 1) rank.find("layers.00.q")->value.as<float>()[0] += 1;
    check.run();
  });
  run_thread_ranks(1, [](ThreadRank& thread) {
    const Rank rank(thread, {});
    CpuBackend backend(1);
    ReplicaCheck check(held_weights(rank.store, {}), backend, *rank.groups.world);
    EXPECT_EQ(check.num_compared(), 0);
    check.run();
  });
}

TEST(ReplicaCheck, ManyDifferencesAreCounted) {
  run_thread_ranks(3, [](ThreadRank& thread) {
    ParameterStore store;
    for (int i = 0; i < 20; ++i)
      store.add({.name = fmt::format("w{:02d}", i), .global_shape = {3}});
    CpuBackend backend(1);
    store.allocate(backend, DType::f32);
    const auto world = thread.world_group();
    if (thread.rank() == 0) backend.fill(store.flat_value(), 2.0);
    std::string message;
    try {
      ReplicaCheck(held_weights(store, {}), backend, *world).run();
    } catch (const Error& error) {
      message = error.what();
    }
    EXPECT_THAT(message, AllOf(HasSubstr("20 of 20 replicated weights"), HasSubstr("w15"),
                               HasSubstr("and 4 more"), Not(HasSubstr("w16"))));
  });
}

// Longer than the bounded copy: its end is looked at as well.
TEST(ReplicaCheck, LargeWeightsAreComparedToTheEnd) {
  run_thread_ranks(2, [](ThreadRank& thread) {
    ParameterStore store;
    store.add({.name = "w", .global_shape = {3, 700'001}});  // 8.4 MB
    CpuBackend backend(1);
    store.allocate(backend, DType::f32);
    const auto world = thread.world_group();
    ReplicaCheck check(held_weights(store, {}), backend, *world);
    check.run();
    if (thread.rank() == 0) store.flat_value().as<float>()[store.numel() - 1] = 1;
    EXPECT_THROW(check.run(), Error);
  });
}

}  // namespace
}  // namespace phalanx::test
