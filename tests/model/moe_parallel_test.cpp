// MoeLayer on thread ranks of every mesh shape against one rank, with even, uneven and empty
// routing; the bytes it moves; and arenas that a bad routing overflows.
#include <gmock/gmock.h>

#include "kernels/null_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/model/moe_test_layer.h"

namespace phalanx::test {
namespace {

struct MeshCase {
  const char* name;
  int dp, cp, tp, ep, expert_tp;
  int world() const { return dp * cp * tp; }
  DeviceMesh mesh() const {
    return {ParallelConfig{.tensor_model_parallel_size = tp,
                           .context_parallel_size = cp,
                           .expert_model_parallel_size = ep,
                           .expert_tensor_parallel_size = expert_tp,
                           .sequence_parallel = tp > 1},
            world()};
  }
};
void PrintTo(const MeshCase& item, std::ostream* out) {
  *out << item.name;
}

constexpr int64_t kHidden = 12;
constexpr int64_t kRows = 32;  // of one micro-batch; every dp rank has its own

/// How rows choose experts: by the drawn router, or all the same ones.
enum class Routing : uint8_t { drawn, first_experts, last_expert };

/// Rows whose first entry is 1, so that the router's first column is a bias.
std::vector<OwnTensor> inputs(int64_t count, const std::string& name) {
  std::vector<OwnTensor> list;
  for (int64_t i = 0; i < count; ++i) {
    list.emplace_back(Shape{kRows, kHidden}, DType::f64, name + std::to_string(i));
    for (int64_t row = 0; row < kRows; ++row) list.back()().as<double>()[row * kHidden] = 1.0;
  }
  return list;
}

void set_routing(MoeTestLayer& moe, Routing routing) {
  if (routing == Routing::drawn) return;
  auto* router = moe.store[0].value.as<double>();
  const int64_t experts = moe.config.num_experts;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t rank = routing == Routing::first_experts ? e : experts - 1 - e;
    router[e * kHidden] = 40.0 - 30.0 * static_cast<double>(rank);
  }
}

struct Expected {
  std::vector<std::vector<double>> y, dx;  // of each micro-batch
  std::map<std::string, std::vector<double>> gradients;
  double balance = 0, z = 0;
};

class MoeMesh : public testing::TestWithParam<MeshCase> {
 protected:
  static Expected one_rank(const ModelConfig& config, Routing routing, int dp) {
    ProcessGroups groups = make_single_process_groups();
    MoeTestLayer moe(config, groups);
    set_routing(moe, routing);
    const auto x = inputs(dp, "x"), dy = inputs(dp, "dy");
    const OwnTensor y({kRows, kHidden}, DType::f64), dx({kRows, kHidden}, DType::f64);
    Expected expected;
    for (size_t i = 0; i < x.size(); ++i) {
      moe.run(y(), dx(), x[i](), dy[i]());
      expected.y.push_back(to_doubles(y()));
      expected.dx.push_back(to_doubles(dx()));
    }
    for (int64_t i = 0; i < moe.store.size(); ++i)
      expected.gradients[moe.store[i].spec.name] = to_doubles(moe.store[i].gradient);
    expected.balance = moe.sum_values[0];
    expected.z = moe.sum_values[1];
    return expected;
  }

  /// Sums the gradient over the axes that its placement calls partial.
  static void reduce_gradient(const Parameter& parameter, ProcessGroups& groups) {
    const AxisSet& partial = parameter.spec.placement.partial_gradient;
    if (partial.contains(MeshAxis::dp)) groups.dp->all_reduce(parameter.gradient, ReduceOp::sum);
    if (partial.contains(MeshAxis::cp)) groups.cp->all_reduce(parameter.gradient, ReduceOp::sum);
    if (partial.contains(MeshAxis::tp)) groups.tp->all_reduce(parameter.gradient, ReduceOp::sum);
    if (partial.contains(MeshAxis::expert_dp))
      groups.expert_dp->all_reduce(parameter.gradient, ReduceOp::sum);
  }

  static void expect_equals_one_rank(const ModelConfig& config, Routing routing) {
    const MeshCase& c = GetParam();
    const DeviceMesh mesh = c.mesh();
    const Expected expected = one_rank(config, routing, c.dp);
    const auto x = inputs(c.dp, "x"), dy = inputs(c.dp, "dy");
    run_thread_ranks(c.world(), [&](ThreadRank& rank) {
      ProcessGroups groups = rank.process_groups(mesh);
      MoeTestLayer moe(config, groups, DType::f64,
                       c.tp > 1 ? SequenceParallel::on : SequenceParallel::off);
      set_routing(moe, routing);
      const auto batch = static_cast<size_t>(groups.dp->rank());
      const int64_t n = kRows / (c.cp * c.tp);
      const int64_t begin = (groups.cp->rank() * c.tp + groups.tp->rank()) * n;
      const auto own = [&](const Tensor& all) { return to_doubles(all.slice(begin, begin + n)); };
      const OwnTensor y({n, kHidden}, DType::f64), dx({n, kHidden}, DType::f64);
      moe.run(y(), dx(), x[batch]().slice(begin, begin + n), dy[batch]().slice(begin, begin + n));
      auto expected_y = expected.y, expected_dx = expected.dx;
      const Shape whole{kRows, kHidden};
      expect_near(to_doubles(y()), own(cpu_tensor(expected_y[batch].data(), whole)), DType::f64, 72,
                  40, "y");
      expect_near(to_doubles(dx()), own(cpu_tensor(expected_dx[batch].data(), whole)), DType::f64,
                  72, 200, "dx");
      for (int64_t i = 0; i < moe.store.size(); ++i) {
        reduce_gradient(moe.store[i], groups);
        const auto& all = expected.gradients.at(moe.store[i].spec.name);
        expect_near(to_doubles(moe.store[i].gradient), piece_of(moe.store[i], all), DType::f64,
                    kRows * c.dp, 200, moe.store[i].spec.name);
      }
      groups.world->all_reduce(moe.sums, ReduceOp::sum);
      EXPECT_NEAR(moe.sum_values[0], expected.balance, 1e-13 * c.dp * 8);
      EXPECT_NEAR(moe.sum_values[1], expected.z, 1e-13 * expected.z);
    });
  }
};
INSTANTIATE_TEST_SUITE_P(
    Meshes, MoeMesh,
    testing::Values(MeshCase{"alone", 1, 1, 1, 1, 1}, MeshCase{"dp2", 2, 1, 1, 1, 1},
                    MeshCase{"dp2ep2", 2, 1, 1, 2, 1}, MeshCase{"cp2ep2", 1, 2, 1, 2, 1},
                    MeshCase{"tp2ep2", 1, 1, 2, 2, 1}, MeshCase{"tp2", 1, 1, 2, 1, 1},
                    MeshCase{"dp4ep4", 4, 1, 1, 4, 1}, MeshCase{"dp4ep2", 4, 1, 1, 2, 1},
                    MeshCase{"dp2etp2", 2, 1, 1, 1, 2}, MeshCase{"tp2etp2", 1, 1, 2, 1, 2},
                    MeshCase{"dp2tp2ep2etp2", 2, 1, 2, 2, 2}, MeshCase{"cp4ep2etp2", 1, 4, 1, 2, 2},
                    MeshCase{"dp2cp2tp2ep2etp2", 2, 2, 2, 2, 2},
                    MeshCase{"dp2cp2tp2ep4etp2", 2, 2, 2, 4, 2},
                    MeshCase{"dp2cp2tp2ep8", 2, 2, 2, 8, 1}, MeshCase{"dp4tp2ep4", 4, 1, 2, 4, 1}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(MoeMesh, EqualsOneRank) {
  expect_equals_one_rank(moe_config(), Routing::drawn);
}

// All rows to the experts of ep rank 0: every other rank gets nothing.
TEST_P(MoeMesh, EqualsOneRankWhenMostRanksGetNoRow) {
  expect_equals_one_rank(moe_config(), Routing::first_experts);
}

TEST_P(MoeMesh, EqualsOneRankWhenOneExpertGetsEverything) {
  ModelConfig config = moe_config();
  config.moe_router_topk = 1;
  expect_equals_one_rank(config, Routing::last_expert);
}

// Per rank with n rows, M = n k choices, m rows received (before expert_tp), H wide, e bytes per
// element and a per accumulator. All-to-all over ep: 8 E of counts; M (H e + a) out and m H e back
// in the forward; M H e out and m (H e + a) back in the backward. All-gather over expert_tp: 8 E of
// counts, m (H e + a) and then m H e. All-reduce over tp and over cp: 8 E of counts.
TEST_P(MoeMesh, MovesTheBytesOfTheClosedFormula) {
  const MeshCase& c = GetParam();
  const DeviceMesh mesh = c.mesh();
  const ModelConfig config = moe_config();
  run_thread_ranks(c.world(), [&](ThreadRank& rank) {
    ProcessGroups groups = rank.process_groups(mesh);
    MoeTestLayer moe(config, groups, DType::bf16);
    const int64_t n = kRows / (c.cp * c.tp);
    const OwnTensor in({n, kHidden}, DType::bf16, "x" + std::to_string(rank.rank()));
    const OwnTensor y({n, kHidden}, DType::bf16), dx({n, kHidden}, DType::bf16);
    moe.run(y(), dx(), in(), in());
    const int64_t counts = 8 * config.num_experts;
    const int64_t choices = n * config.moe_router_topk;
    const auto own = static_cast<size_t>(groups.expert_tp->rank());
    const int64_t received = moe.saved.route.gathered[own];
    const int64_t row = 2 * kHidden, weight = 4;
    const int64_t ep_bytes = counts + (choices + received) * (2 * row + weight);
    EXPECT_EQ(groups.ep->traffic(Collective::all_to_all).bytes, c.ep > 1 ? ep_bytes : 0);
    EXPECT_EQ(groups.ep->traffic(Collective::all_to_all).calls, c.ep > 1 ? 7 : 0);
    const int64_t gathered = counts + received * (2 * row + weight);
    EXPECT_EQ(groups.expert_tp->traffic(Collective::all_gather).bytes,
              c.expert_tp > 1 ? gathered : 0);
    const int64_t all = moe.saved.route.rows();
    EXPECT_EQ(groups.expert_tp->traffic(Collective::reduce_scatter).bytes,
              c.expert_tp > 1 ? all * (2 * row + weight) : 0);
    EXPECT_EQ(groups.tp->traffic(Collective::all_reduce).bytes, c.tp > 1 ? counts : 0);
    EXPECT_EQ(groups.cp->traffic(Collective::all_reduce).bytes, c.cp > 1 ? counts : 0);
    // Dropless: every choice arrives once.
    const int64_t arrived = groups.world->all_reduce(received, ReduceOp::sum);
    EXPECT_EQ(arrived, choices * c.world());
  });
}

TEST(MoeOverflow, UnevenRoutingGoesBeyondThePlanAndStaysRight) {
  const MeshCase c{"dp4ep4", 4, 1, 1, 4, 1};
  const DeviceMesh mesh = c.mesh();
  const ModelConfig config = moe_config();
  const auto x = inputs(c.dp, "x"), dy = inputs(c.dp, "dy");
  testing::internal::CaptureStderr();
  run_thread_ranks(4, [&](ThreadRank& rank) {
    ProcessGroups silent = make_measuring_process_groups(mesh, rank.rank());
    NullBackend null(Device::cpu);
    ParameterStore store;
    MoeLayer twin({.config = config,
                   .layer = 1,
                   .parallel = {store, null, *silent.tp},
                   .cp = *silent.cp,
                   .experts = {*silent.ep, *silent.expert_tp}});
    store.allocate(null, DType::f64);
    Arena saved_plan = Arena::measuring("saved", Device::cpu);
    Arena scratch_plan = Arena::measuring("scratch", Device::cpu);
    Memory plan{saved_plan, scratch_plan};
    const Tensor nothing{.data = nullptr, .shape = {kRows, kHidden}, .dtype = DType::f64};
    MoeLayer::Saved saved;
    twin.forward(nothing, nothing, saved, plan, {});
    twin.backward(nothing, nothing, saved, plan, {});
    EXPECT_EQ(saved.route.rows(), kRows * 2 * 5 / 4);  // 25 % above even routing

    ProcessGroups groups = rank.process_groups(mesh);
    MoeTestLayer planned(config, groups, DType::f64, SequenceParallel::off);
    MoeTestLayer roomy(config, groups, DType::f64, SequenceParallel::off);
    set_routing(planned, Routing::first_experts);
    set_routing(roomy, Routing::first_experts);
    const auto bounded = [&](const char* name, const Arena& measured) {
      const auto block = planned.backend.allocate(measured.peak_bytes());
      Arena arena(name, block.get(), measured.peak_bytes(), Device::cpu);
      arena.set_overflow([&, block](int64_t bytes) { return planned.backend.allocate(bytes); });
      return arena;
    };
    Arena saved_arena = bounded("saved", saved_plan);
    Arena scratch_arena = bounded("scratch", scratch_plan);
    Memory memory{saved_arena, scratch_arena};
    const auto batch = static_cast<size_t>(rank.rank());
    const OwnTensor y({kRows, kHidden}, DType::f64), dx({kRows, kHidden}, DType::f64);
    const OwnTensor y2({kRows, kHidden}, DType::f64), dx2({kRows, kHidden}, DType::f64);
    planned.layer.forward(y(), x[batch](), planned.saved, memory, planned.loss());
    planned.layer.backward(dx(), dy[batch](), planned.saved, memory, planned.loss());
    roomy.run(y2(), dx2(), x[batch](), dy[batch]());
    EXPECT_EQ(to_doubles(y()), to_doubles(y2()));
    EXPECT_EQ(to_doubles(dx()), to_doubles(dx2()));
    EXPECT_EQ(to_doubles(planned.store.flat_gradient()), to_doubles(roomy.store.flat_gradient()));
    EXPECT_EQ(saved_arena.overflow_bytes() > 0, rank.rank() == 0);
  });
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::HasSubstr("arena 'saved' needs more than the planned"));
}

TEST(MoeLayout, TensorParallelWithoutSequenceParallelIsRefused) {
  const DeviceMesh mesh(ParallelConfig{.tensor_model_parallel_size = 2}, 2);
  ProcessGroups groups = make_measuring_process_groups(mesh, 0);
  try {
    const MoeTestLayer moe(moe_config(), groups, DType::f64, SequenceParallel::off);
    FAIL() << "no error";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("--sequence-parallel"));
  }
}

}  // namespace
}  // namespace phalanx::test
