// The matrix product behind cublasLtMatmul: operands packed to the sums' type, then blocks of
// 4 columns by 32 rows of the result, which g++ keeps in vector registers.
#include "tests/cuda_emulator/matrix_product.h"

#include <cstdint>
#include <vector>

#include "kernels/base/dtype.h"

namespace phalanx::emulator {
namespace {

constexpr int64_t kRows = 32;
constexpr int64_t kColumns = 4;

/// Calls `body(element)` with a pointer of the type's C++ type.
template <class Body>
void with_type(cudaDataType type, Body&& body) {
  switch (type) {
    case CUDA_R_64F:
      return body(static_cast<double*>(nullptr));
    case CUDA_R_32F:
      return body(static_cast<float*>(nullptr));
    case CUDA_R_16BF:
      return body(static_cast<BFloat16*>(nullptr));
  }
}

int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

/// Element (i, j) of op(matrix) goes to packed[j * column + i * row].
template <class Sum, class T>
void pack(std::vector<Sum>& packed, const T* data, const cublasLtMatrixLayoutOpaque_t& layout,
          int64_t row, int64_t column) {
  const auto rows = static_cast<int64_t>(layout.rows);
  const auto columns = static_cast<int64_t>(layout.cols);
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t i = 0; i < rows; ++i)
      packed[static_cast<size_t>(j * column + i * row)] = static_cast<Sum>(data[j * layout.ld + i]);
}

/// sums[j][i] = sum over k of a[k][i] b[k][j].
template <class Sum>
void block(Sum (&sums)[kColumns][kRows], const Sum* a, int64_t a_step, const Sum* b, int64_t b_step,
           int64_t depth) {
  for (auto& column : sums)
    for (Sum& sum : column) sum = 0;
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t j = 0; j < kColumns; ++j) {
      const Sum factor = b[k * b_step + j];
      for (int64_t i = 0; i < kRows; ++i) sums[j][i] += a[k * a_step + i] * factor;
    }
}

struct Shape {
  int64_t m, n, k;
  int64_t padded_m, padded_n;
};

/// One batch member: a is [k][padded_m], b is [k][padded_n].
template <class Sum, class Out>
void finish(const MatrixProduct& product, const Shape& shape, const std::vector<Sum>& a,
            const std::vector<Sum>& b, const Out* c, Out* d) {
  const auto alpha = static_cast<Sum>(product.alpha);
  const auto beta = static_cast<Sum>(product.beta);
  Sum sums[kColumns][kRows];
  for (int64_t j0 = 0; j0 < shape.n; j0 += kColumns)
    for (int64_t i0 = 0; i0 < shape.m; i0 += kRows) {
      block(sums, a.data() + i0, shape.padded_m, b.data() + j0, shape.padded_n, shape.k);
      for (int64_t j = j0; j < std::min(j0 + kColumns, shape.n); ++j)
        for (int64_t i = i0; i < std::min(i0 + kRows, shape.m); ++i) {
          Sum value = alpha * sums[j - j0][i - i0];
          if (beta != 0) value += beta * static_cast<Sum>(c[j * product.c.ld + i]);
          d[j * product.d.ld + i] = static_cast<Out>(value);
        }
    }
}

template <class Sum, class In, class Out>
void multiply_typed(const MatrixProduct& product) {
  const bool a_across = product.operation.trans_a == CUBLAS_OP_T;
  const bool b_across = product.operation.trans_b == CUBLAS_OP_T;
  Shape shape{};
  shape.m = static_cast<int64_t>(product.d.rows);
  shape.n = static_cast<int64_t>(product.d.cols);
  shape.k = static_cast<int64_t>(a_across ? product.a.rows : product.a.cols);
  shape.padded_m = round_up(shape.m, kRows);
  shape.padded_n = round_up(shape.n, kColumns);
  std::vector<Sum> a(static_cast<size_t>(shape.k * shape.padded_m));
  std::vector<Sum> b(static_cast<size_t>(shape.k * shape.padded_n));
  for (int64_t batch = 0; batch < product.d.batch_count; ++batch) {
    const In* a_data = static_cast<const In*>(product.a_data) + batch * product.a.batch_stride;
    const In* b_data = static_cast<const In*>(product.b_data) + batch * product.b.batch_stride;
    pack(a, a_data, product.a, a_across ? shape.padded_m : 1, a_across ? 1 : shape.padded_m);
    pack(b, b_data, product.b, b_across ? 1 : shape.padded_n, b_across ? shape.padded_n : 1);
    finish(product, shape, a, b,
           static_cast<const Out*>(product.c_data) + batch * product.c.batch_stride,
           static_cast<Out*>(product.d_data) + batch * product.d.batch_stride);
  }
}

}  // namespace

void multiply(const MatrixProduct& product) {
  with_type(product.a.type, [&]<class In>(In*) {
    with_type(product.d.type, [&]<class Out>(Out*) {
      using Sum = std::conditional_t<std::is_same_v<In, double>, double, float>;
      multiply_typed<Sum, In, Out>(product);
    });
  });
}

}  // namespace phalanx::emulator
