// cublasLtMatmul and its heuristic: what they refuse, and the product on the stream.
#include <fmt/format.h>

#include <cstdio>
#include <cstring>

#include "tests/cuda_emulator/counters.h"
#include "tests/cuda_emulator/include/cublasLt.h"
#include "tests/cuda_emulator/matrix_product.h"
#include "tests/cuda_emulator/memory.h"
#include "tests/cuda_emulator/stream.h"

namespace phalanx::emulator {
namespace {

constexpr uint64_t kWorkspaceWanted = 1 << 20;  // so that callers must bring what they promised

size_t element_bytes(cudaDataType type) {
  return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2;
}

/// The combinations of the table "cublasLtMatmul, supported types" that the product can ask for.
bool types_fit(const cublasLtMatmulDescOpaque_t& operation, const cublasLtMatrixLayoutOpaque_t& a,
               const cublasLtMatrixLayoutOpaque_t& b, const cublasLtMatrixLayoutOpaque_t& c,
               const cublasLtMatrixLayoutOpaque_t& d) {
  if (a.type != b.type || c.type != d.type) return false;
  const bool is_double = operation.compute_type == CUBLAS_COMPUTE_64F ||
                         operation.compute_type == CUBLAS_COMPUTE_64F_PEDANTIC;
  if (is_double)
    return operation.scale_type == CUDA_R_64F && a.type == CUDA_R_64F && d.type == CUDA_R_64F;
  if (operation.scale_type != CUDA_R_32F) return false;
  if (a.type == CUDA_R_32F) return d.type == CUDA_R_32F;
  return a.type == CUDA_R_16BF && (d.type == CUDA_R_16BF || d.type == CUDA_R_32F);
}

bool layout_is_valid(const cublasLtMatrixLayoutOpaque_t& layout) {
  return layout.rows > 0 && layout.cols > 0 && layout.ld >= static_cast<int64_t>(layout.rows) &&
         layout.batch_count > 0;
}

struct Operands {
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t a, b, c, d;
};

cublasStatus_t check_operands(const Operands& all) {
  if (all.operation == nullptr || all.a == nullptr || all.b == nullptr || all.c == nullptr ||
      all.d == nullptr)
    return CUBLAS_STATUS_INVALID_VALUE;
  for (const auto* layout : {all.a, all.b, all.c, all.d})
    if (!layout_is_valid(*layout) || layout->batch_count != all.d->batch_count)
      return CUBLAS_STATUS_INVALID_VALUE;
  const bool a_across = all.operation->trans_a == CUBLAS_OP_T;
  const bool b_across = all.operation->trans_b == CUBLAS_OP_T;
  const bool fits =
      (a_across ? all.a->cols : all.a->rows) == all.d->rows &&
      (b_across ? all.b->rows : all.b->cols) == all.d->cols &&
      (a_across ? all.a->rows : all.a->cols) == (b_across ? all.b->cols : all.b->rows) &&
      all.c->rows == all.d->rows && all.c->cols == all.d->cols;
  if (!fits) return CUBLAS_STATUS_INVALID_VALUE;
  for (const auto* layout : {all.a, all.b, all.c, all.d})
    if (layout->order != CUBLASLT_ORDER_COL) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool plain = all.operation->epilogue == CUBLASLT_EPILOGUE_DEFAULT &&
                     all.operation->pointer_mode == CUBLASLT_POINTER_MODE_HOST;
  return plain && types_fit(*all.operation, *all.a, *all.b, *all.c, *all.d)
             ? CUBLAS_STATUS_SUCCESS
             : CUBLAS_STATUS_NOT_SUPPORTED;
}

/// Bytes from the first to behind the last element of all batch members.
size_t bytes_of(const cublasLtMatrixLayoutOpaque_t& layout) {
  const auto last = static_cast<int64_t>(layout.cols - 1) * layout.ld +
                    static_cast<int64_t>(layout.rows) +
                    (layout.batch_count - 1) * layout.batch_stride;
  return static_cast<size_t>(last) * element_bytes(layout.type);
}

bool complain(const char* what) {
  std::fprintf(stderr, "CUDA emulator: cublasLtMatmul: %s\n", what);
  return false;
}

/// Whether the data are on the device, and as aligned as the algorithm was told.
bool data_fit(const MatrixProduct& product, const cublasLtMatmulAlgo_t& algorithm) {
  const std::pair<const void*, const cublasLtMatrixLayoutOpaque_t*> all[] = {
      {product.a_data, &product.a},
      {product.b_data, &product.b},
      {product.beta == 0 ? product.d_data : product.c_data, &product.c},
      {product.d_data, &product.d}};
  for (size_t i = 0; i < 4; ++i) {
    if (!is_device_range(all[i].first, bytes_of(*all[i].second)))
      return complain("an operand is not wholly inside of one device allocation");
    if (reinterpret_cast<uintptr_t>(all[i].first) % algorithm.min_alignment[i] != 0)
      return complain("an operand is less aligned than the heuristic was told");
  }
  return true;
}

}  // namespace
}  // namespace phalanx::emulator

using namespace phalanx::emulator;  // NOLINT: the API below is C

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t lightHandle, cublasLtMatmulDesc_t operationDesc, cublasLtMatrixLayout_t Adesc,
    cublasLtMatrixLayout_t Bdesc, cublasLtMatrixLayout_t Cdesc, cublasLtMatrixLayout_t Ddesc,
    cublasLtMatmulPreference_t preference, int requestedAlgoCount,
    cublasLtMatmulHeuristicResult_t heuristicResultsArray[], int* returnAlgoCount) {
  if (lightHandle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (preference == nullptr || requestedAlgoCount <= 0 || returnAlgoCount == nullptr)
    return CUBLAS_STATUS_INVALID_VALUE;
  *returnAlgoCount = 0;
  const auto status = check_operands({operationDesc, Adesc, Bdesc, Cdesc, Ddesc});
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const uint64_t workspace = std::min(preference->max_workspace_bytes, kWorkspaceWanted);
  cublasLtMatmulHeuristicResult_t& result = heuristicResultsArray[0];
  result = {};
  result.algo.workspace_bytes = workspace;
  result.algo.is_chosen = 1;
  std::memcpy(result.algo.min_alignment, preference->min_alignment,
              sizeof(preference->min_alignment));
  result.workspaceSize = workspace;
  result.state = CUBLAS_STATUS_SUCCESS;
  *returnAlgoCount = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t lightHandle, cublasLtMatmulDesc_t computeDesc,
                              const void* alpha, const void* A, cublasLtMatrixLayout_t Adesc,
                              const void* B, cublasLtMatrixLayout_t Bdesc, const void* beta,
                              const void* C, cublasLtMatrixLayout_t Cdesc, void* D,
                              cublasLtMatrixLayout_t Ddesc, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, size_t workspaceSizeInBytes, cudaStream_t stream) {
  if (lightHandle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (alpha == nullptr || beta == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  const auto status = check_operands({computeDesc, Adesc, Bdesc, Cdesc, Ddesc});
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const auto scalar = [&](const void* value) {
    return computeDesc->scale_type == CUDA_R_64F ? *static_cast<const double*>(value)
                                                 : double{*static_cast<const float*>(value)};
  };
  const MatrixProduct product{*computeDesc,  *Adesc,      *Bdesc, *Cdesc, *Ddesc, A, B, C, D,
                              scalar(alpha), scalar(beta)};
  const cublasLtMatmulAlgo_t by_default{0, {256, 256, 256, 256}, 1};
  const cublasLtMatmulAlgo_t& algorithm = algo == nullptr ? by_default : *algo;
  const bool workspace_fits =
      algorithm.workspace_bytes == 0 || (workspaceSizeInBytes >= algorithm.workspace_bytes &&
                                         is_device_range(workspace, algorithm.workspace_bytes));
  if (algorithm.is_chosen != 1 || !workspace_fits) {
    complain("no algorithm, or less workspace than the heuristic was promised");
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (!data_fit(product, algorithm)) return CUBLAS_STATUS_INVALID_VALUE;
  ++counters().matrix_products;
  const size_t poisoned = algorithm.workspace_bytes;
  const cudaError_t error = submit(stream, [product, workspace, poisoned] {
    if (poisoned > 0) std::memset(workspace, 0xff, poisoned);  // partial sums of others
    multiply(product);
  });
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
