// The emulated cublasLtMatmul against the definition of the product, and what it refuses.
#include <cublasLt.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/base/dtype.h"
#include "tests/cuda_emulator/emulator_fixture.h"

namespace phalanx {
namespace {

struct Product {
  int64_t m = 37, n = 9, k = 21;
  cublasOperation_t op_a = CUBLAS_OP_N, op_b = CUBLAS_OP_N;
  cudaDataType in = CUDA_R_32F, out = CUDA_R_32F;
  float alpha = 1, beta = 0;
  int64_t batches = 1;
  uint64_t workspace = 1 << 20;
  uint32_t alignment = 4;
  int64_t a_rows() const { return op_a == CUBLAS_OP_N ? m : k; }
  int64_t b_rows() const { return op_b == CUBLAS_OP_N ? k : n; }
};

class CublasTest : public emulator::EmulatorTest {
 protected:
  void SetUp() override {
    EmulatorTest::SetUp();
    ASSERT_EQ(cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS);
  }
  void TearDown() override {
    EXPECT_EQ(cublasLtDestroy(handle_), CUBLAS_STATUS_SUCCESS);
    EmulatorTest::TearDown();
  }

  void layout(cublasLtMatrixLayoutOpaque_t& layout, cudaDataType type, int64_t rows, int64_t cols,
              int64_t ld, int64_t stride, int64_t batches) {
    ASSERT_EQ(cublasLtMatrixLayoutInit(&layout, type, static_cast<uint64_t>(rows),
                                       static_cast<uint64_t>(cols), ld),
              CUBLAS_STATUS_SUCCESS);
    const auto count = static_cast<int32_t>(batches);
    ASSERT_EQ(cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                               sizeof(count)),
              CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                               &stride, sizeof(stride)),
              CUBLAS_STATUS_SUCCESS);
  }

  /// Describes the product with leading dims 3 larger than needed.
  void describe(const Product& p) {
    const bool is_double = p.in == CUDA_R_64F;
    ASSERT_EQ(
        cublasLtMatmulDescInit(&operation_, is_double ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                               is_double ? CUDA_R_64F : CUDA_R_32F),
        CUBLAS_STATUS_SUCCESS);
    const int32_t ops[2] = {p.op_a, p.op_b};
    ASSERT_EQ(cublasLtMatmulDescSetAttribute(&operation_, CUBLASLT_MATMUL_DESC_TRANSA, &ops[0], 4),
              CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasLtMatmulDescSetAttribute(&operation_, CUBLASLT_MATMUL_DESC_TRANSB, &ops[1], 4),
              CUBLAS_STATUS_SUCCESS);
    const int64_t a_cols = p.m * p.k / p.a_rows();
    const int64_t b_cols = p.k * p.n / p.b_rows();
    layout(a_, p.in, p.a_rows(), a_cols, p.a_rows() + 3, (p.a_rows() + 3) * a_cols, p.batches);
    layout(b_, p.in, p.b_rows(), b_cols, p.b_rows() + 3, (p.b_rows() + 3) * b_cols, p.batches);
    layout(d_, p.out, p.m, p.n, p.m + 3, (p.m + 3) * p.n, p.batches);
    ASSERT_EQ(cublasLtMatmulPreferenceInit(&preference_), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(
        cublasLtMatmulPreferenceSetAttribute(&preference_, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &p.workspace, sizeof(p.workspace)),
        CUBLAS_STATUS_SUCCESS);
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      ASSERT_EQ(cublasLtMatmulPreferenceSetAttribute(&preference_, attribute, &p.alignment, 4),
                CUBLAS_STATUS_SUCCESS);
  }
  cublasStatus_t choose() {
    int count = 0;
    return cublasLtMatmulAlgoGetHeuristic(handle_, &operation_, &a_, &b_, &d_, &d_, &preference_, 1,
                                          &chosen_, &count);
  }

  template <class In, class Out>
  void check_product(const Product& p);

  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDescOpaque_t operation_{};
  cublasLtMatrixLayoutOpaque_t a_{}, b_{}, d_{};
  cublasLtMatmulPreferenceOpaque_t preference_{};
  cublasLtMatmulHeuristicResult_t chosen_{};
};

/// Integers small enough for exact sums in every type.
template <class T>
std::vector<T> numbers(int64_t count, int64_t step) {
  std::vector<T> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<T>(static_cast<float>(static_cast<int64_t>(i) * step % 5 - 2));
  return values;
}

template <class In, class Out>
void CublasTest::check_product(const Product& p) {
  describe(p);
  ASSERT_EQ(choose(), CUBLAS_STATUS_SUCCESS);
  const auto a = numbers<In>(a_.batch_stride * p.batches, 3);
  const auto b = numbers<In>(b_.batch_stride * p.batches, 7);
  const auto c = numbers<Out>(d_.batch_stride * p.batches, 4);
  auto a_data = device_vector(a);
  auto b_data = device_vector(b);
  auto d_data = device_vector(c);
  auto workspace = device_vector(std::vector<char>(p.workspace));
  const double alphas[2] = {p.alpha, p.beta};
  const bool is_double = p.in == CUDA_R_64F;
  const void* alpha = is_double ? static_cast<const void*>(&alphas[0]) : &p.alpha;
  const void* beta = is_double ? static_cast<const void*>(&alphas[1]) : &p.beta;
  ASSERT_EQ(cublasLtMatmul(handle_, &operation_, alpha, a_data.get(), &a_, b_data.get(), &b_, beta,
                           d_data.get(), &d_, d_data.get(), &d_, &chosen_.algo, workspace.get(),
                           p.workspace, stream_),
            CUBLAS_STATUS_SUCCESS);
  const auto d = download(d_data, c.size());
  for (int64_t batch = 0; batch < p.batches; ++batch)
    for (int64_t j = 0; j < p.n + 0; ++j)
      for (int64_t i = 0; i < p.m + 3; ++i) {
        const auto at = static_cast<size_t>(batch * d_.batch_stride + j * d_.ld + i);
        double expected = 0;
        for (int64_t l = 0; l < p.k && i < p.m; ++l) {
          const int64_t a_at = p.op_a == CUBLAS_OP_N ? l * a_.ld + i : i * a_.ld + l;
          const int64_t b_at = p.op_b == CUBLAS_OP_N ? j * b_.ld + l : l * b_.ld + j;
          expected += static_cast<double>(a[static_cast<size_t>(batch * a_.batch_stride + a_at)]) *
                      static_cast<double>(b[static_cast<size_t>(batch * b_.batch_stride + b_at)]);
        }
        const auto old = static_cast<double>(c[at]);
        expected = i < p.m ? p.alpha * expected + p.beta * old : old;  // gaps stay as they were
        EXPECT_EQ(static_cast<double>(d[at]), expected) << i << ' ' << j << ' ' << batch;
      }
}

TEST_F(CublasTest, ProductsOfEveryTypeAndOrientation) {
  for (const auto op_a : {CUBLAS_OP_N, CUBLAS_OP_T})
    for (const auto op_b : {CUBLAS_OP_N, CUBLAS_OP_T}) {
      const Product base{.op_a = op_a, .op_b = op_b};
      Product p = base;
      check_product<float, float>(p);
      p.beta = 1;
      p.alpha = 0.5F;
      p.batches = 3;
      check_product<float, float>(p);
      p.in = p.out = CUDA_R_64F;
      p.alignment = 8;
      check_product<double, double>(p);
      p.in = CUDA_R_16BF;
      p.out = CUDA_R_32F;
      p.alignment = 2;
      check_product<BFloat16, float>(p);
      p.out = CUDA_R_16BF;
      p.alpha = 1;
      check_product<BFloat16, BFloat16>(p);
    }
}

TEST_F(CublasTest, WhatTheLibraryRefuses) {
  Product p;
  p.out = CUDA_R_16BF;
  describe(p);
  EXPECT_EQ(choose(), CUBLAS_STATUS_NOT_SUPPORTED) << "f32 to bf16";
  p.out = CUDA_R_32F;
  describe(p);
  a_.rows = 5;
  EXPECT_EQ(choose(), CUBLAS_STATUS_INVALID_VALUE) << "shapes that do not fit";
  describe(p);
  b_.ld = 2;
  EXPECT_EQ(choose(), CUBLAS_STATUS_INVALID_VALUE) << "columns that overlap";
  describe(p);
  operation_.epilogue = 4;
  EXPECT_EQ(choose(), CUBLAS_STATUS_NOT_SUPPORTED);
  const int64_t wrong_size = 1;
  EXPECT_EQ(
      cublasLtMatmulDescSetAttribute(&operation_, CUBLASLT_MATMUL_DESC_TRANSA, &wrong_size, 8),
      CUBLAS_STATUS_INVALID_VALUE);
}

TEST_F(CublasTest, DataMustBeAsGoodAsPromised) {
  Product p;
  p.alignment = 16;
  describe(p);
  ASSERT_EQ(choose(), CUBLAS_STATUS_SUCCESS);
  auto data = device_vector(std::vector<float>(10000));
  auto workspace = device_vector(std::vector<char>(p.workspace));
  const auto run = [&](float* a, float* d, void* scratch, size_t scratch_bytes) {
    return cublasLtMatmul(handle_, &operation_, &p.alpha, a, &a_, data.get() + 2000, &b_, &p.beta,
                          d, &d_, d, &d_, &chosen_.algo, scratch, scratch_bytes, stream_);
  };
  float* const d = data.get() + 4000;
  EXPECT_EQ(run(data.get(), d, workspace.get(), p.workspace), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(run(data.get() + 1, d, workspace.get(), p.workspace), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(run(data.get(), d + 5900, workspace.get(), p.workspace), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(run(data.get(), d, workspace.get(), p.workspace - 1), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(run(data.get(), d, nullptr, 0), CUBLAS_STATUS_INVALID_VALUE);
}

}  // namespace
}  // namespace phalanx
