// NumPy's legacy generator (numpy.random.RandomState), as far as data order needs it: the same seed
// shuffles the same way, so that a run can take over another trainer's data in mid-epoch.
#pragma once

#include <bit>
#include <cstdint>
#include <random>
#include <span>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/flight_recorder.h"

namespace phalanx {

/// MT19937 with NumPy's seeding and bounded draws. Value type; one thread at a time.
class NumpyRandom {
 public:
  /// `seed` below 2^32, as NumPy demands.
  explicit NumpyRandom(uint64_t seed) : generator_(checked(seed)) {}

  /// Uniform in [0, max]: draws masked to max's bits until one fits. Two words when `max` needs
  /// more than 32 bits, the high one first.
  uint64_t interval(uint64_t max) {
    if (max == 0) return 0;
    const uint64_t mask = ~uint64_t{0} >> std::countl_zero(max);
    for (;;) {
      uint64_t value = generator_();
      if (max > 0xffffffffU) value = (value << 32) | generator_();
      value &= mask;
      if (value <= max) return value;
    }
  }

  /// Fisher-Yates from the end, as RandomState.shuffle.
  template <class T>
  void shuffle(std::span<T> values) {
    for (uint64_t i = values.size(); i > 1; --i) {
      flight_progress_of(i);
      std::swap(values[i - 1], values[interval(i - 1)]);
    }
  }

 private:
  static uint32_t checked(uint64_t seed) {
    check_usage(seed <= 0xffffffffU, "seed ", seed,
                " is too large; the data order needs one below ", uint64_t{1} << 32);
    return static_cast<uint32_t>(seed);
  }
  std::mt19937 generator_;
};

}  // namespace phalanx
