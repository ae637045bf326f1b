// Routes of rows to experts: dispatch and collect are transposes on every shape of expert groups,
// rows arrive at their expert, and empty ranks are ranks.
#include "parallel/expert_parallel.h"

#include <fmt/format.h>

#include <gmock/gmock.h>

#include "parallel/thread_process_group.h"
#include "tests/parallel/parallel_helpers.h"

namespace phalanx::test {
namespace {

struct GroupsCase {
  int ep, expert_tp;
};
constexpr int64_t kExperts = 8, kWidth = 3;

class ExpertRoutes : public testing::TestWithParam<GroupsCase> {
 protected:
  /// Runs `body(rank, dispatcher, ops, memory)` on every rank; `expert_tp` varies fastest.
  template <class Body>
  static void on_ranks(const Body& body) {
    const auto [ep, expert_tp] = GetParam();
    const DeviceMesh mesh(
        ParallelConfig{.expert_model_parallel_size = ep, .expert_tensor_parallel_size = expert_tp},
        ep * expert_tp);
    run_thread_ranks(ep * expert_tp, [&](ThreadRank& rank) {
      ProcessGroups groups = rank.process_groups(mesh);
      CpuBackend ops(1);
      TestMemory arenas;
      const ExpertDispatcher dispatcher(ops, {*groups.ep, *groups.expert_tp}, kExperts);
      body(groups, dispatcher, ops, arenas.memory);
      EXPECT_EQ(arenas.scratch.used_bytes(), 0);
    });
  }
};
INSTANTIATE_TEST_SUITE_P(Groups, ExpertRoutes,
                         testing::Values(GroupsCase{1, 1}, GroupsCase{2, 1}, GroupsCase{4, 1},
                                         GroupsCase{1, 2}, GroupsCase{2, 2}, GroupsCase{4, 2},
                                         GroupsCase{8, 1}, GroupsCase{1, 4}),
                         [](const auto& info) {
                           return fmt::format("ep{}etp{}", info.param.ep, info.param.expert_tp);
                         });

/// Integer values, so that sums are exact in any order.
OwnTensor integers(const Shape& shape, int64_t seed) {
  const OwnTensor tensor(shape, DType::f64);
  for (int64_t i = 0; i < shape.numel(); ++i)
    tensor().as<double>()[i] = static_cast<double>((i * 5 + seed * 11) % 13 - 6);
  return tensor;
}

double dot(const Tensor& a, const Tensor& b) {
  double sum = 0.0;
  for (int64_t i = 0; i < a.numel(); ++i) sum += a.as<double>()[i] * b.as<double>()[i];
  return sum;
}

/// Two experts per row, no two ranks alike; `spread` 1 sends every row to expert 0 and 1.
std::vector<int32_t> choose_experts(int64_t rows, int rank, int64_t spread) {
  std::vector<int32_t> experts;
  for (int64_t row = 0; row < rows; ++row) {
    const auto first = static_cast<int32_t>((row * row + 3 * rank) % spread);
    experts.push_back(first);
    experts.push_back((first + 1) % static_cast<int32_t>(kExperts));
  }
  return experts;
}

// <dispatch x, y> = <x, collect y> over all ranks, for rows and for a value per choice. Under
// expert_tp a dispatched row is there on every rank of it, and what is collected is a partial sum.
TEST_P(ExpertRoutes, DispatchAndCollectAreConjugate) {
  for (const int64_t spread : {kExperts, int64_t{1}})
    on_ranks(
        [&](ProcessGroups& groups, const ExpertDispatcher& dispatcher, Backend&, Memory& memory) {
          const int rank = groups.world->rank();
          const int64_t rows = rank == 1 ? 0 : 4 + rank;  // one rank has no rows at all
          std::vector<int32_t> experts = choose_experts(rows, rank, spread);
          std::vector<int64_t> counts(kExperts);
          ExpertDispatcher::Route route;
          dispatcher.route(route, cpu_tensor(counts.data(), {kExperts}),
                           cpu_tensor(experts.data(), {rows, 2}), memory);
          const int64_t arrived = route.rows();
          for (const Shape& shape : {Shape{rows, kWidth}, Shape{2 * rows, 1}}) {
            const OwnTensor x = integers(shape, rank), back(shape, DType::f64);
            const Shape there{arrived, shape[1]};
            const OwnTensor y = integers(there, 50 + rank), sent(there, DType::f64);
            dispatcher.dispatch(sent(), x(), route, memory);
            dispatcher.collect(back(), y(), route, memory);
            EXPECT_EQ(groups.world->all_reduce(dot(sent(), y()), ReduceOp::sum),
                      groups.world->all_reduce(dot(x(), back()), ReduceOp::sum));
          }
        });
}

// Each choice carries its expert's number: rows of expert e arrive with e, all of them, in order.
TEST_P(ExpertRoutes, RowsArriveAtTheirExpert) {
  on_ranks(
      [&](ProcessGroups& groups, const ExpertDispatcher& dispatcher, Backend&, Memory& memory) {
        const int rank = groups.world->rank();
        const int64_t rows = 3 + rank;
        std::vector<int32_t> experts = choose_experts(rows, rank, 5);
        std::vector<int64_t> counts(kExperts);
        ExpertDispatcher::Route route;
        dispatcher.route(route, cpu_tensor(counts.data(), {kExperts}),
                         cpu_tensor(experts.data(), {rows, 2}), memory);
        const OwnTensor numbers({2 * rows, 1}, DType::f64), arrived({route.rows(), 1}, DType::f64);
        set_values(numbers(), std::vector<double>(experts.begin(), experts.end()));
        dispatcher.dispatch(arrived(), numbers(), route, memory);
        int64_t row = 0;
        for (int64_t e = 0; e < dispatcher.local_experts(); ++e)
          for (int64_t i = 0; i < route.expert_rows[static_cast<size_t>(e)]; ++i)
            EXPECT_EQ(arrived().as<double>()[row++],
                      static_cast<double>(dispatcher.first_expert() + e));
        EXPECT_EQ(row, route.rows());
        // Every choice of every rank is somewhere, once per rank of expert_tp.
        EXPECT_EQ(groups.world->all_reduce(route.rows(), ReduceOp::sum),
                  groups.world->all_reduce(2 * rows, ReduceOp::sum) * groups.expert_tp->size());
      });
}

TEST(ExpertRouteErrors, ExpertsThatEpDoesNotDivideAreRefused) {
  const DeviceMesh mesh(ParallelConfig{.expert_model_parallel_size = 3}, 3);
  ProcessGroups groups = make_measuring_process_groups(mesh, 0);
  CpuBackend ops(1);
  EXPECT_THROW(ExpertDispatcher(ops, {*groups.ep, *groups.expert_tp}, kExperts), UsageError);
}

}  // namespace
}  // namespace phalanx::test
