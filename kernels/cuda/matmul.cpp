// Matrix products on cuBLASLt. The only file that knows it.
#include <cublasLt.h>

#include <bit>
#include <unordered_map>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_error.h"

namespace phalanx {
namespace {

/// C[m, n] = op(A) op(B) and what makes two products share an algorithm.
struct Product {
  int64_t m, n, k;
  DType input, output;
  bool a_transposed, b_transposed, accumulate;
  // Each address is a multiple of two to this power; tensors may begin at any element.
  uint8_t a_alignment, b_alignment, c_alignment;

  bool operator==(const Product&) const = default;
};

struct ProductHash {
  size_t operator()(const Product& p) const {
    uint64_t hash = 0;
    const auto mix = [&hash](int64_t value) {
      hash = (std::rotl(hash, 23) ^ static_cast<uint64_t>(value)) * 0x9E3779B97F4A7C15ULL;
    };
    mix(p.m);
    mix(p.n);
    mix(p.k);
    mix(p.a_transposed + 2 * p.b_transposed + 4 * p.accumulate + 8 * static_cast<int>(p.input) +
        64 * static_cast<int>(p.output));
    mix(p.a_alignment + 8 * p.b_alignment + 64 * p.c_alignment);
    return hash;
  }
};

/// log2 of the address' alignment, at most 16 bytes: no kernel asks for more.
uint8_t alignment_of(const Tensor& tensor) {
  return static_cast<uint8_t>(std::countr_zero(reinterpret_cast<uintptr_t>(tensor.data) | 16U));
}

/// A product of matrices, and where it runs.
struct MatmulCall {
  Tensor c, a, b;
  MatmulOptions options;
  void* workspace;
  cudaStream_t stream;

  Product product() const {
    const bool transposed = options.a == Transpose::yes;
    return {.m = c.shape[0],
            .n = c.shape[1],
            .k = transposed ? a.shape[0] : a.shape[1],
            .input = a.dtype,
            .output = c.dtype,
            .a_transposed = transposed,
            .b_transposed = options.b == Transpose::yes,
            .accumulate = options.accumulate == Accumulate::yes,
            .a_alignment = alignment_of(a),
            .b_alignment = alignment_of(b),
            .c_alignment = alignment_of(c)};
  }
};

void check_product(cublasStatus_t status, const char* call, const Product& p) {
  if (status == CUBLAS_STATUS_SUCCESS) return;  // the text is made only on failure
  fail(call, " failed with ", cublasLtGetStatusName(status), " for the product C[", p.m, ", ", p.n,
       "] = A", p.a_transposed ? "^T" : "", " B", p.b_transposed ? "^T" : "",
       p.accumulate ? " + C" : "", " over k = ", p.k, ", A and B ", dtype_name(p.input), ", C ",
       dtype_name(p.output));
}

cudaDataType_t data_type(DType dtype) {
  if (dtype == DType::f64) return CUDA_R_64F;
  return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF;
}

/// The row-major C = op(A) op(B) is, read by columns, C^T = op(B)^T op(A)^T: the library's first
/// operand is B, its second A, and a matrix [rows, columns] of ours is [columns, rows] with the
/// leading dimension `columns`.
class Layouts {
 public:
  explicit Layouts(const Product& p) {
    make(a_, p, p.input, p.a_transposed ? p.k : p.m, p.a_transposed ? p.m : p.k);
    make(b_, p, p.input, p.b_transposed ? p.n : p.k, p.b_transposed ? p.k : p.n);
    make(c_, p, p.output, p.m, p.n);
  }
  cublasLtMatrixLayout_t a() { return &a_; }
  cublasLtMatrixLayout_t b() { return &b_; }
  cublasLtMatrixLayout_t c() { return &c_; }

 private:
  static void make(cublasLtMatrixLayoutOpaque_t& layout, const Product& p, DType dtype,
                   int64_t rows, int64_t columns) {
    check_product(
        cublasLtMatrixLayoutInit(&layout, data_type(dtype), static_cast<uint64_t>(columns),
                                 static_cast<uint64_t>(rows), columns),
        "cublasLtMatrixLayoutInit", p);
  }
  cublasLtMatrixLayoutOpaque_t a_, b_, c_;
};

constexpr int64_t kMatmulWorkspaceBytes = 32 << 20;  // what NVIDIA advises for Hopper

/// What is made once per product: the operation and the library's first choice of algorithm.
class Plan {
 public:
  Plan(cublasLtHandle_t library, const Product& p) {
    const bool f64 = p.input == DType::f64;
    // 32F and not its TF32 variant: sums and f32 inputs keep all their bits.
    check_product(cublasLtMatmulDescInit(&operation_, f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                         f64 ? CUDA_R_64F : CUDA_R_32F),
                  "cublasLtMatmulDescInit", p);
    transpose(CUBLASLT_MATMUL_DESC_TRANSA, p.b_transposed, p);  // see Layouts
    transpose(CUBLASLT_MATMUL_DESC_TRANSB, p.a_transposed, p);
    choose(library, p);
  }

  cublasStatus_t run(cublasLtHandle_t library, const MatmulCall& call, const Product& p) {
    Layouts layouts(p);
    const double alpha64 = 1.0, beta64 = p.accumulate ? 1.0 : 0.0;
    const float alpha32 = 1.0F, beta32 = p.accumulate ? 1.0F : 0.0F;
    const bool f64 = p.input == DType::f64;
    const void* alpha = f64 ? static_cast<const void*>(&alpha64) : &alpha32;
    const void* beta = f64 ? static_cast<const void*>(&beta64) : &beta32;
    return cublasLtMatmul(library, &operation_, alpha, call.b.data, layouts.b(), call.a.data,
                          layouts.a(), beta, call.c.data, layouts.c(), call.c.data, layouts.c(),
                          &algorithm_, call.workspace, kMatmulWorkspaceBytes, call.stream);
  }

 private:
  void transpose(cublasLtMatmulDescAttributes_t attribute, bool transposed, const Product& p) {
    const cublasOperation_t value = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check_product(cublasLtMatmulDescSetAttribute(&operation_, attribute, &value, sizeof(value)),
                  "cublasLtMatmulDescSetAttribute", p);
  }

  void choose(cublasLtHandle_t library, const Product& p) {
    cublasLtMatmulPreferenceOpaque_t preference;
    check_product(cublasLtMatmulPreferenceInit(&preference), "cublasLtMatmulPreferenceInit", p);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      check_product(
          cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)),
          "cublasLtMatmulPreferenceSetAttribute", p);
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kMatmulWorkspaceBytes});
    // Parts of a sum over k are added in f32, never in a bfloat16 result.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t{1} << p.b_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t{1} << p.a_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t{1} << p.c_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t{1} << p.c_alignment);
    Layouts layouts(p);
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(library, &operation_, layouts.b(), layouts.a(), layouts.c(),
                                       layouts.c(), &preference, 1, &result, &found);
    check_product(status, "cublasLtMatmulAlgoGetHeuristic", p);
    check_product(found > 0 ? result.state : CUBLAS_STATUS_NOT_SUPPORTED,
                  "cublasLtMatmulAlgoGetHeuristic", p);
    algorithm_ = result.algo;
  }

  cublasLtMatmulDescOpaque_t operation_;
  cublasLtMatmulAlgo_t algorithm_;
};

/// `rows` rounded up to one of four sizes per power of two.
int64_t rounded_up(int64_t rows) {
  const auto step = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)) / 8);
  return step == 0 ? rows : (rows + step - 1) / step * step;
}

}  // namespace

struct CudaBackend::MatmulCache {
  // So that changing shapes cannot fill memory.
  static constexpr size_t kMaxPlans = 4096;

  MatmulCache() {
    const cublasStatus_t status = cublasLtCreate(&library);
    check(status == CUBLAS_STATUS_SUCCESS, "cublasLtCreate failed with ",
          cublasLtGetStatusName(status));
  }
  ~MatmulCache() { static_cast<void>(cublasLtDestroy(library)); }
  MatmulCache(const MatmulCache&) = delete;
  MatmulCache& operator=(const MatmulCache&) = delete;

  Plan& plan(const Product& p) {
    const auto found = plans.find(p);
    if (found != plans.end()) return found->second;
    if (plans.size() >= kMaxPlans) plans.clear();
    return plans.emplace(p, Plan(library, p)).first->second;
  }

  /// `planned`: the product whose algorithm is taken; p, the call's, or one of nearly its shape.
  void run(const MatmulCall& call, const Product& p, const Product& planned) {
    if (p.m == 0 || p.n == 0) return;
    if (p.k == 0) {  // an empty sum, which the library refuses
      if (p.accumulate) return;
      return cuda_check(
          cudaMemsetAsync(call.c.data, 0, static_cast<size_t>(call.c.bytes()), call.stream),
          "cudaMemsetAsync");
    }
    cublasStatus_t status = plan(planned).run(library, call, p);
    if (status != CUBLAS_STATUS_SUCCESS && !(planned == p)) status = plan(p).run(library, call, p);
    check_product(status, "cublasLtMatmul", p);
  }

  cublasLtHandle_t library = nullptr;
  std::unordered_map<Product, Plan, ProductHash> plans;
};

void CudaBackend::matmul_impl(const Tensor& c, const Tensor& a, const Tensor& b,
                              const MatmulOptions& options) {
  if (!matmuls_) matmuls_ = std::make_shared<MatmulCache>();
  const MatmulCall call{.c = c.as_matrix(),
                        .a = a.as_matrix(),
                        .b = b.as_matrix(),
                        .options = options,
                        .workspace = workspace(kMatmulWorkspaceBytes),
                        .stream = stream_};
  const Product product = call.product();
  matmuls_->run(call, product, product);
}

/// The rows of groups differ in every step, so groups of nearly one size share an algorithm,
/// because an algorithm for each new size would have to be chosen while the GPU waits.
void CudaBackend::grouped_matmul_impl(const Tensor& c, const Tensor& a, const Tensor& b,
                                      const GroupedMatmul& options) {
  if (!matmuls_) matmuls_ = std::make_shared<MatmulCache>();
  const bool per_group_result = options.product.a == Transpose::yes;
  const auto matrix_of = [](const Tensor& all, size_t group) {
    const auto g = static_cast<int64_t>(group);
    return all.slice(g, g + 1).as_matrix();
  };
  int64_t begin = 0;
  for (size_t g = 0; g < options.rows.size(); ++g) {
    const int64_t end = begin + options.rows[g];
    const MatmulCall call{.c = per_group_result ? matrix_of(c, g) : c.as_matrix().slice(begin, end),
                          .a = a.as_matrix().slice(begin, end),
                          .b = per_group_result ? b.as_matrix().slice(begin, end) : matrix_of(b, g),
                          .options = options.product,
                          .workspace = workspace(kMatmulWorkspaceBytes),
                          .stream = stream_};
    const Product product = call.product();
    Product planned = product;
    (per_group_result ? planned.k : planned.m) = rounded_up(options.rows[g]);
    matmuls_->run(call, product, planned);
    begin = end;
  }
}

}  // namespace phalanx
