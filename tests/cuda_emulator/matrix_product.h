// D = alpha op(A) op(B) + beta C, as cublasLtMatmul defines it.
#pragma once

#include "tests/cuda_emulator/include/cublasLt.h"

namespace phalanx::emulator {

struct MatrixProduct {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t a, b, c, d;
  const void* a_data;
  const void* b_data;
  const void* c_data;
  void* d_data;
  double alpha, beta;
};

/// The product, by batches; sums in f32 (f64 for f64) in ascending order of k.
void multiply(const MatrixProduct& product);

}  // namespace phalanx::emulator
