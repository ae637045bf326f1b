// HeadPair: the elements of a head that a lane holds, in the two halves that RoPE rotates.
#pragma once

#include "kernels/cuda/packs.h"

namespace phalanx {

/// Elements i .. i + n of a head and those half a head further.
template <class T, int n>
struct HeadPair {
  using Acc = Accumulator<T>;
  Acc first[n];
  Acc second[n];

  /// The second part lies beyond the head in the middle of an odd one: then it is 0.
  __device__ void load_from(const T* head, int64_t i, int64_t half, int64_t dim) {
    load<n>(first, head + i);
    if (n > 1 || half + i < dim)
      load<n>(second, head + half + i);
    else
      second[0] = Acc{0};
  }
  __device__ void store_to(T* head, int64_t i, int64_t half, int64_t dim) const {
    store<n>(head + i, first);
    if (n > 1 || half + i < dim) store<n>(head + half + i, second);
  }

  __device__ Acc sum_squares() const {
    Acc sum{};
#pragma unroll
    for (int j = 0; j < n; ++j) sum += first[j] * first[j] + second[j] * second[j];
    return sum;
  }

  /// sum of this * weight * x.
  __device__ Acc dot(const HeadPair& weight, const HeadPair& x) const {
    Acc sum{};
#pragma unroll
    for (int j = 0; j < n; ++j)
      sum += first[j] * weight.first[j] * x.first[j] + second[j] * weight.second[j] * x.second[j];
    return sum;
  }

  /// Rounded to T before the weight, as HybridNorm's code does.
  __device__ void normalise(const HeadPair& weight, Acc rstd) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
      first[j] = rounded<T>(first[j] * rstd) * weight.first[j];
      second[j] = rounded<T>(second[j] * rstd) * weight.second[j];
    }
  }

  /// Rotation by the angles of elements i .. i + n, forward (sign 1) or back (sign -1).
  __device__ void rotate(const float* cosines, int64_t i, int64_t half, Acc sign) {
    if (cosines == nullptr) return;
    float c[n];
    float s[n];
    load_angles(c, cosines + i);
    load_angles(s, cosines + half + i);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const Acc a = first[j];
      const Acc b = second[j];
      const Acc cosine = static_cast<Acc>(c[j]);
      const Acc sine = sign * static_cast<Acc>(s[j]);
      first[j] = a * cosine - b * sine;
      second[j] = b * cosine + a * sine;
    }
  }

 private:
  __device__ static void load_angles(float (&values)[n], const float* source) {
    if constexpr (n == 2) {  // of doubles: half a pack of floats
      values[0] = source[0];
      values[1] = source[1];
    } else {
      load<n>(values, source);
    }
  }
};

}  // namespace phalanx
