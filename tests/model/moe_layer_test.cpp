// MoeLayer on one rank: against the naive mixture, its gradients against finite differences, and
// what must not change anything (dtype, deferred weight gradients, a full arena).
#include <gmock/gmock.h>

#include "kernels/null_backend.h"
#include "tests/model/moe_test_layer.h"

namespace phalanx::test {
namespace {

constexpr int64_t kRows = 2 * 3 * 2;  // S, B, K

class MoeLayerTest : public testing::TestWithParam<int64_t> {
 protected:
  ModelConfig config() const {
    ModelConfig model = moe_config();
    model.moe_router_topk = GetParam();
    return model;
  }
  ProcessGroups groups = make_single_process_groups();
  const OwnTensor x{{2, 3, 2, 12}, DType::f64, "x"};
  const OwnTensor dy{{2, 3, 2, 12}, DType::f64, "dy"};
  const OwnTensor y{{2, 3, 2, 12}, DType::f64};
  const OwnTensor dx{{2, 3, 2, 12}, DType::f64};
};
INSTANTIATE_TEST_SUITE_P(TopK, MoeLayerTest, testing::Values(1, 2, 3, 8));

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

TEST_P(MoeLayerTest, EqualsTheNaiveMixture) {
  MoeTestLayer moe(config(), groups);
  moe.run(y(), dx(), x(), dy());
  const Mixture expected = naive_mixture(config(), weights_of(moe.store), to_doubles(x()));
  expect_near(to_doubles(y()), expected.y, DType::f64, 12 * 6, 20, "y");
  EXPECT_NEAR(moe.sum_values[0], expected.balance, 1e-13);
  EXPECT_NEAR(moe.sum_values[1], expected.z, 1e-12);
  EXPECT_EQ(moe.arenas.scratch.used_bytes(), 0);
}

TEST_P(MoeLayerTest, GradientsEqualFiniteDifferences) {
  MoeTestLayer moe(config(), groups);
  moe.run(y(), dx(), x(), dy());
  const Weights weights = weights_of(moe.store);
  const std::vector<double> input = to_doubles(x()), upstream = to_doubles(dy());
  const auto objective = [&](const Weights& w, const std::vector<double>& in) {
    const Mixture mixture = naive_mixture(config(), w, in);
    return dot(mixture.y, upstream) + kBalanceScale * mixture.balance + kZScale * mixture.z;
  };
  int64_t checked = 0;
  const auto expect_slope = [&](const std::vector<double>& gradient, const std::string& name) {
    const OwnTensor direction({static_cast<int64_t>(gradient.size())}, DType::f64, name);
    const std::vector<double> d = to_doubles(direction());
    const auto at = [&](double step) {
      Weights w = weights;
      std::vector<double> in = input;
      std::vector<double>& moved = name == "x" ? in : w.at(name);
      for (size_t i = 0; i < d.size(); ++i) moved[i] += step * d[i];
      return objective(w, in);
    };
    // Five-point rule; errors as in tests/kernels/gradient_test.cpp.
    const double h = 2e-4;
    const double slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    EXPECT_NEAR(dot(gradient, d), slope, 1e-9 * std::max(1.0, std::abs(slope))) << name;
    checked += std::abs(slope) > 1e-3 ? 1 : 0;
  };
  expect_slope(to_doubles(dx()), "x");
  for (int64_t i = 0; i < moe.store.size(); ++i)
    expect_slope(to_doubles(moe.store[i].gradient), moe.store[i].spec.name);
  // x, the router, and gate, up and down of every expert that got a row.
  int64_t used = 0;
  for (const int64_t rows : moe.saved.route.expert_rows) used += rows > 0 ? 1 : 0;
  EXPECT_GE(checked, 2 + 3 * used);
}

TEST_P(MoeLayerTest, DeferredWeightGradientsAreTheSame) {
  MoeTestLayer now(config(), groups), later(config(), groups);
  now.run(y(), dx(), x(), dy());
  const std::vector<double> expected_dx = to_doubles(dx());
  DeferredWork deferred;
  later.arenas.memory.deferred = &deferred;
  later.run(y(), dx(), x(), dy());
  EXPECT_EQ(to_doubles(dx()), expected_dx);
  EXPECT_THAT(to_doubles(later.store.flat_gradient()), testing::Each(0.0));
  EXPECT_FALSE(deferred.empty());
  for (const auto& work : deferred) work(later.arenas.scratch);
  EXPECT_EQ(to_doubles(later.store.flat_gradient()), to_doubles(now.store.flat_gradient()));
}

// If weights were renormalised, one expert per row would be used with weight 1.
TEST(MoeRouter, WeightsAreNotRenormalised) {
  ModelConfig config = moe_config();
  config.moe_router_topk = 1;
  ProcessGroups groups = make_single_process_groups();
  MoeTestLayer moe(config, groups);
  // Equal logits: expert 0 wins every tie, with probability 1 / E.
  moe.backend.zero(moe.store[0].value);
  const OwnTensor x({kRows, 12}, DType::f64, "x"), y({kRows, 12}, DType::f64);
  moe.layer.forward(y(), x(), moe.saved, moe.arenas.memory, moe.loss());
  EXPECT_THAT(moe.saved.route.expert_rows, testing::ElementsAre(kRows, 0, 0, 0, 0, 0, 0, 0));
  std::vector<double> expected = naive_expert(config, weights_of(moe.store), 0, x().as<double>());
  for (double& value : expected) value /= 8;
  expect_near(to_doubles(y().slice(0, 1)), expected, DType::f64, 72, 4, "y");
  EXPECT_NEAR(moe.sum_values[0], 1.0, 1e-14);  // E * 1 * 1/E: no worse than balanced, as p is flat
}

TEST(MoeMemory, PlanOfOneRankIsExactAndWithAbsentSumsNothingIsAdded) {
  const ModelConfig config = moe_config();
  ProcessGroups groups = make_single_process_groups();
  MoeTestLayer moe(config, groups);
  const OwnTensor x({kRows, 12}, DType::f64, "x"), y({kRows, 12}, DType::f64);
  const OwnTensor dx({kRows, 12}, DType::f64);
  const RouterLoss uncounted{.balance_scale = kBalanceScale, .z_scale = kZScale};
  moe.layer.forward(y(), x(), moe.saved, moe.arenas.memory, uncounted);
  moe.layer.backward(dx(), x(), moe.saved, moe.arenas.memory, uncounted);
  EXPECT_EQ(moe.sum_values[0], 0.0);

  NullBackend null(Device::cpu);
  ParameterStore store;
  MoeLayer twin({.config = config,
                 .layer = 1,
                 .parallel = {store, null, *groups.tp},
                 .cp = *groups.cp,
                 .experts = {*groups.ep, *groups.expert_tp}});
  store.allocate(null, DType::f64);
  Arena saved_arena = Arena::measuring("saved", Device::cpu);
  Arena scratch_arena = Arena::measuring("scratch", Device::cpu);
  Memory memory{saved_arena, scratch_arena};
  MoeLayer::Saved saved;
  const Tensor nothing{.data = nullptr, .shape = {kRows, 12}, .dtype = DType::f64};
  twin.forward(nothing, nothing, saved, memory, uncounted);
  twin.backward(nothing, nothing, saved, memory, uncounted);
  EXPECT_EQ(saved_arena.peak_bytes(), moe.arenas.saved.peak_bytes());
  EXPECT_EQ(scratch_arena.peak_bytes(), moe.arenas.scratch.peak_bytes());
}

TEST(MoeDtypes, Bf16AndF32StayNearF64) {
  const ModelConfig config = moe_config();
  ProcessGroups groups = make_single_process_groups();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    MoeTestLayer moe(config, groups, dtype);
    const OwnTensor x({kRows, 12}, dtype, "x"), dy({kRows, 12}, dtype, "dy");
    const OwnTensor y({kRows, 12}, dtype), dx({kRows, 12}, dtype);
    moe.run(y(), dx(), x(), dy());
    const Mixture expected = naive_mixture(config, weights_of(moe.store), to_doubles(x()));
    const double largest = *std::max_element(expected.y.begin(), expected.y.end());
    expect_near(to_doubles(y()), expected.y, dtype, 12, largest, "y");
    // The router runs in f32 whatever the compute dtype.
    EXPECT_NEAR(moe.sum_values[0], expected.balance, 1e-5);
    EXPECT_NEAR(moe.sum_values[1], expected.z, 1e-5 * expected.z);
  }
}

}  // namespace
}  // namespace phalanx::test
