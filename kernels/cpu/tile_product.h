// tile_product: C (+)= A B on tiles that live in the caches, in register blocks. A is read one
// broadcast value at a time, so it may be stored by rows or by columns; B and C by rows.
#pragma once

#include "kernels/cpu/tile_vector.h"

namespace phalanx {

/// by_rows: a(i, k) at a[i * stride + k]. by_columns: groups of kPack along the sum are adjacent,
/// a(i, k) at a[k / kPack * stride + i * kPack + k % kPack].
enum class TileLayout : uint8_t { by_rows, by_columns };

/// C [rows, vectors * lanes] of Real with A [rows, sum] and B [sum, vectors * lanes] of Stored; B
/// holds groups of kPack along the sum adjacent, as above. Strides in elements.
template <class T>
struct TileProduct {
  using Real = typename TileTraits<T>::Real;
  using Stored = typename TileTraits<T>::Stored;
  const Stored* a;
  int64_t a_stride;
  const Stored* b;
  int64_t b_stride;
  Real* c;
  int64_t c_stride;
  int64_t rows;
  int64_t vectors;
  int64_t sum;  // a multiple of kPack
  bool accumulate;
};

/// One register block of kRows x kVectors. Every element is one chain of multiply-adds in the order
/// of k whatever the block's size, so results do not depend on how C is cut.
template <class T, TileLayout kLayout, int kRows, int kVectors>
inline void product_block(const TileProduct<T>& product, int64_t row, int64_t vector) {
  using Traits = TileTraits<T>;
  using Lanes = typename Traits::Lanes;
  constexpr int64_t kPack = Traits::kPack;
  constexpr bool kByRows = kLayout == TileLayout::by_rows;
  const int64_t a_row = kByRows ? product.a_stride : kPack;
  const int64_t a_step = kByRows ? kPack : product.a_stride;
  const auto* a = product.a + row * a_row;
  const auto* b = product.b + vector * Lanes::kLanes * kPack;
  auto* c = product.c + row * product.c_stride + vector * Lanes::kLanes;

  typename Lanes::Type sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      sums[i][j] = product.accumulate ? Lanes::load(c + i * product.c_stride + j * Lanes::kLanes)
                                      : typename Lanes::Type{};
    }
  }
  for (int64_t k = 0; k < product.sum; k += kPack, a += a_step, b += product.b_stride) {
    typename Lanes::Type columns[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      columns[j] = Traits::load_packed(b + j * Lanes::kLanes * kPack);
      Lanes::hold(columns[j]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        sums[i][j] = Traits::multiply_add(a + i * a_row, columns[j], sums[i][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      Lanes::store(c + i * product.c_stride + j * Lanes::kLanes, sums[i][j]);
    }
  }
}

template <class T, TileLayout kLayout, int kVectors>
inline void product_panel(const TileProduct<T>& product, int64_t vector) {
  constexpr int kRows = kVectors <= kProductVectors / 2 ? 8 : 4;  // sums fill half the registers
  int64_t row = 0;
  for (; row + kRows <= product.rows; row += kRows) {
    product_block<T, kLayout, kRows, kVectors>(product, row, vector);
  }
  for (; row < product.rows; ++row) product_block<T, kLayout, 1, kVectors>(product, row, vector);
}

template <class T, TileLayout kLayout>
inline void tile_product(const TileProduct<T>& product) {
  for (int64_t vector = 0; vector < product.vectors;) {
    const int64_t left = product.vectors - vector;
    if constexpr (kProductVectors == 4) {
      if (left >= 4) {
        product_panel<T, kLayout, 4>(product, vector);
        vector += 4;
        continue;
      }
      if (left == 3) {
        product_panel<T, kLayout, 3>(product, vector);
        vector += 3;
        continue;
      }
    }
    if (left >= 2) {
      product_panel<T, kLayout, 2>(product, vector);
      vector += 2;
    } else {
      product_panel<T, kLayout, 1>(product, vector);
      vector += 1;
    }
  }
}

}  // namespace phalanx
