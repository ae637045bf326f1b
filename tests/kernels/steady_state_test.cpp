// Steady state: results have the same bits on every run, and on the CPU on any number of threads;
// there ops allocate nothing after their first call, and the vectorised exponential keeps its
// documented error.
#include "kernels/cpu/vector_math.h"
#include "tests/allocation_count.h"
#include "tests/kernels/op_test.h"

namespace phalanx::test {
namespace {

TEST(FastExp, StaysWithinItsDocumentedErrorAndHandlesTheEnds) {
  double worst = 0.0;
  for (float x = -87.3F; x < 88.3F; x += 0.00137F) {
    const double expected = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::abs(fast_exp(x) - expected) / expected);
  }
  EXPECT_LT(worst, 1.5e-7);
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(fast_exp(-infinity), 0.0F);
  EXPECT_EQ(fast_exp(infinity), infinity);
  EXPECT_EQ(fast_exp(0.0F), 1.0F);
  EXPECT_TRUE(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

/// Everything that sums over rows, and one product of each orientation.
class Steps {
 public:
  Steps(Device device, int num_threads, DType dtype) : bench_(device, num_threads), dtype_(dtype) {
    const DType acc = accumulator_dtype(dtype);
    const auto draw = [&](const Shape& shape, uint64_t seed) {
      return bench_.upload(random_array(shape, dtype, seed), dtype);
    };
    x_ = draw({kRows, kWidth}, 1);
    dy_ = draw({kRows, kWidth}, 2);
    weight_ = draw({kWidth}, 3);
    head_weight_ = draw({8}, 4);
    heads_ = bench_.poisoned({1, 6, kRows, 1, 8}, dtype);
    y_ = bench_.poisoned({kRows, kWidth}, dtype);
    rstd_ = bench_.poisoned({kRows}, acc);
    ids_ = bench_.upload(random_integers({kRows, 1}, 0, 20, 5), DType::i32);
    dtable_ = bench_.upload(Array({20, kWidth}), acc);
    dweight_ = bench_.upload(Array({kWidth}), acc);
    dhead_weight_ = bench_.upload(Array({8}), acc);
    dlinear_ = bench_.upload(Array({kWidth, kWidth}), acc);
    square_ = draw({kWidth, kWidth}, 6);
    sum_ = bench_.upload(Array({1}), DType::f64);
  }

  void run() {
    run_loops();
    run_products();
  }

  void run_loops() {
    Backend& ops = bench_.backend();
    ops.embedding_backward(dtable_, dy_, ids_, 0);
    ops.rms_norm_forward(y_, rstd_, x_, weight_, 1e-5);
    ops.rms_norm_backward(
        {.dx = y_, .dweight = dweight_, .dy = dy_, .x = x_, .rstd = rstd_, .weight = weight_});
    const SplitHeads split{.norm = HeadNorm::per_head, .weight = head_weight_};
    ops.split_heads_forward(heads_, x_, split);
    ops.split_heads_backward({.dx = y_, .dweight = dhead_weight_, .dy = heads_, .x = x_}, split);
    ops.add_sum_squares(sum_, y_);
  }

  void run_products() {
    Backend& ops = bench_.backend();
    ops.matmul(y_, x_, square_, {});
    ops.matmul(y_, x_, square_, {.b = Transpose::yes});
    ops.matmul(dlinear_, dy_, x_, {.a = Transpose::yes, .accumulate = Accumulate::yes});
  }

  /// The sums over rows, which a careless split over threads would change.
  std::vector<Array> row_sums() {
    std::vector<Array> results;
    for (const Tensor& sums : {dtable_, dweight_, dhead_weight_})
      results.push_back(bench_.download(sums));
    return results;
  }

 private:
  static constexpr int64_t kRows = 1000, kWidth = 48;
  OpBench bench_;
  DType dtype_;
  Tensor x_, dy_, weight_, head_weight_, heads_, y_, rstd_, ids_, square_;
  Tensor dtable_, dweight_, dhead_weight_, dlinear_, sum_;
};

class SteadyState : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Ops, SteadyState, testing::Values(DType::f64, DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

TEST_P(SteadyState, SumsOverRowsHaveTheSameBitsOnEveryRunAndOnAnyThreads) {
  Steps alone(test_device(), 1, GetParam());
  alone.run();
  for (const int threads : {2, 3}) {
    Steps together(test_device(), threads, GetParam());
    together.run();
    const std::vector<Array> expected = alone.row_sums();
    const std::vector<Array> actual = together.row_sums();
    for (size_t i = 0; i < expected.size(); ++i)
      EXPECT_EQ(actual[i].values, expected[i].values) << "sum " << i << ", threads " << threads;
  }
}

// Of the CPU alone: what CUDA's runtime allocates per launch is its own.
TEST_P(SteadyState, LoopsAllocateNothingAndProductsOnlyWhatOneDnnTakesPerCall) {
  Steps steps(Device::cpu, 2, GetParam());
  steps.run();
  int64_t before = count_allocations();
  steps.run_loops();
  EXPECT_EQ(count_allocations() - before, 0);
  // oneDNN builds small argument maps on every call: 1 for sgemm and 7 or 8 for a primitive here.
  constexpr int64_t kPerProduct = 8, kProducts = 3;
  before = count_allocations();
  steps.run_products();
  const int64_t second = count_allocations() - before;
  EXPECT_LE(second, GetParam() == DType::f64 ? 0 : kPerProduct * kProducts);
  before = count_allocations();
  steps.run_products();
  EXPECT_EQ(count_allocations() - before, second);
}

}  // namespace
}  // namespace phalanx::test
