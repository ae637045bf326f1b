// Rows of D values: loading them as tiles, packing them for tile_product, and storing results.
#pragma once

#include <memory>
#include <new>

#include "kernels/cpu/attention_tile.h"

namespace phalanx {

/// Memory that only grows: nothing is allocated once the largest problem was seen.
template <class T>
class GrowingBuffer {
 public:
  /// Room for `count` values, uninitialised; what an earlier call returned may be gone.
  T* get(int64_t count) {
    if (count > size_) {
      data_.reset();
      data_.reset(static_cast<T*>(
          ::operator new (static_cast<size_t>(count) * sizeof(T), std::align_val_t{64})));
      size_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete (data, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

/// Rows of D values as tiles need them: padded to `width` values with zeros.
template <class T>
struct TileRows {
  using Stored = typename TileTraits<T>::Stored;
  const Stored* data;
  int64_t stride;
};

/// One row as a tile's: widened and padded with zeros; all zeros if `source` is null.
template <class T>
void load_row(typename TileTraits<T>::Stored* target, const T* source,
              const AttentionProblem<T>& problem) {
  using Stored = typename TileTraits<T>::Stored;
  const int64_t count = source == nullptr ? 0 : problem.head_dim;
  if constexpr (std::is_same_v<Stored, T>) {
    std::copy_n(source, count, target);
  } else {
    for (int64_t d = 0; d < count; ++d) target[d] = static_cast<Stored>(source[d]);
  }
  std::fill(target + count, target + problem.width, Stored(0));
}

/// target = factor * source, rounded to T, for `count` values.
template <class T, class Real>
void store_scaled(T* target, const Real* source, Real factor, int64_t count) {
  using Traits = TileTraits<T>;
  int64_t d = 0;
  for (; d + Traits::Lanes::kLanes <= count; d += Traits::Lanes::kLanes) {
    Traits::store_values(target + d, Traits::Lanes::load(source + d) * factor);
  }
  for (; d < count; ++d) target[d] = T(source[d] * factor);
}

/// `count` consecutive rows as a tile; copied into `buffer` only if they must be padded or widened.
template <class T>
TileRows<T> load_rows(const AttentionProblem<T>& problem, const T* source, int64_t count,
                      typename TileTraits<T>::Stored* buffer) {
  if constexpr (std::is_same_v<typename TileTraits<T>::Stored, T>) {
    if (problem.width == problem.head_dim) return {source, problem.head_dim};
  }
  for (int64_t i = 0; i < count; ++i) {
    load_row(buffer + i * problem.width, source + i * problem.head_dim, problem);
  }
  return {buffer, problem.width};
}

/// packed[d / kPack][row][d % kPack] = rows(row, d): the right operand of a product that sums over
/// D with the rows as columns. Rows beyond `count` are zero.
template <class T>
void pack_transposed(typename TileTraits<T>::Stored* packed, const TileRows<T>& rows, int64_t count,
                     int64_t width) {
  constexpr int64_t kPack = TileTraits<T>::kPack;
  using Stored = typename TileTraits<T>::Stored;
  const int64_t padded = round_up(count, TileTraits<T>::Lanes::kLanes);
  for (int64_t d = 0; d < width; d += kPack) {
    Stored* target = packed + d * kTileRows;
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(target + i * kPack, rows.data + i * rows.stride + d, kPack * sizeof(Stored));
    }
    std::fill(target + count * kPack, target + padded * kPack, Stored(0));
  }
}

/// packed[row / kPack][d][row % kPack] = rows(row, d): the right operand of a product that sums
/// over the rows; the rows themselves when nothing has to be interleaved. Odd counts get one row
/// of zeros.
template <class T>
TileRows<T> pack_interleaved(typename TileTraits<T>::Stored* packed, const TileRows<T>& rows,
                             int64_t count, int64_t width) {
  constexpr int64_t kPack = TileTraits<T>::kPack;
  using Stored = typename TileTraits<T>::Stored;
  if constexpr (kPack == 1) {
    return rows;
  } else {
    constexpr int64_t kLanes = TileTraits<T>::Lanes::kLanes;
    const Stored zeros[kLanes] = {};
    for (int64_t i = 0; i < count; i += kPack) {
      Stored* target = packed + i * width;
      const Stored* first = rows.data + i * rows.stride;
      const Stored* second = first + rows.stride;
      for (int64_t d = 0; d < width; d += kLanes) {
        TileTraits<T>::interleave_values(target + d * kPack, first + d,
                                         i + 1 < count ? second + d : zeros);
      }
    }
    return {packed, width * kPack};
  }
}

/// Dot product of two rows in the accumulator type.
template <class T>
typename TileTraits<T>::Real row_dot(const T* a, const T* b, int64_t count) {
  using Traits = TileTraits<T>;
  using Real = typename Traits::Real;
  constexpr int64_t kLanes = Traits::Lanes::kLanes;
  typename Traits::Type sums{};
  int64_t d = 0;
  for (; d + kLanes <= count; d += kLanes) {
    sums = Traits::load_values(a + d) * Traits::load_values(b + d) + sums;
  }
  Real total = 0;
  for (int64_t i = 0; i < kLanes; ++i) total += sums[i];
  for (; d < count; ++d) total += static_cast<Real>(a[d]) * static_cast<Real>(b[d]);
  return total;
}

}  // namespace phalanx
