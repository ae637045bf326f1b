// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as
// easy as 1, 2, 3"). A draw is a pure function of (seed, key, index), so weights keyed by
// (seed, parameter name, global element index) do not depend on mesh, thread or order.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>

namespace phalanx {

/// Philox4x32-10: 128-bit counter, 64-bit key, 128 random bits out.
constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, uint64_t key) {
  auto k0 = static_cast<uint32_t>(key);
  auto k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53U} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57U} * counter[2];
    counter = {
        static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ k0, static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ k1, static_cast<uint32_t>(product0)};
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return counter;
}

/// 64-bit FNV-1a of a name: the stream of a parameter.
constexpr uint64_t hash_name(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ULL;
  return hash;
}

/// A random stream. Value type, no state: every draw names its index.
class Philox {
 public:
  constexpr Philox(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}
  Philox(uint64_t seed, std::string_view name) : Philox(seed, hash_name(name)) {}

  /// The random bits of element `index`.
  constexpr std::array<uint32_t, 4> draw(uint64_t index, uint32_t attempt) const {
    return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), attempt,
                       static_cast<uint32_t>(stream_)},
                      seed_ ^ (stream_ & 0xffffffff00000000ULL));
  }

  /// Uniform in (0, 1), 53 bits, from `index` and `attempt`.
  constexpr double uniform(uint64_t index, uint32_t attempt = 0) const {
    const auto bits = draw(index, attempt);
    const uint64_t word = (uint64_t{bits[0]} << 32) | bits[1];
    return (static_cast<double>(word >> 11) + 0.5) * 0x1p-53;
  }

  /// Normal(0, 1) cut at +-`cut` standard deviations by rejection: element `index` of the tensor.
  double truncated_normal(uint64_t index, double cut) const {
    for (uint32_t attempt = 0;; ++attempt) {
      const auto bits = draw(index, attempt);
      // Box-Muller from two 32-bit uniforms; both outcomes are tried before the next draw.
      const double radius = std::sqrt(-2.0 * std::log((bits[0] + 0.5) * 0x1p-32));
      const double angle = 2.0 * 3.14159265358979323846 * (bits[1] + 0.5) * 0x1p-32;
      const double first = radius * std::cos(angle);
      if (std::abs(first) <= cut) return first;
      const double second = radius * std::sin(angle);
      if (std::abs(second) <= cut) return second;
    }
  }

 private:
  uint64_t seed_;
  uint64_t stream_;
};

}  // namespace phalanx
