// In which order threads and blocks run where CUDA promises none: forward, backward, random, or
// one warp as far as it goes before another.
#pragma once

#include <cstdint>
#include <string>

namespace phalanx::emulator {

enum class Order : uint8_t { forward, backward, random, warps };

/// The order of runs and a generator of random choices for it.
class RunOrder {
 public:
  /// The setting in force; each call under `random` continues the seed's sequence of generators.
  static RunOrder current();

  Order order() const { return order_; }
  bool is_random() const { return order_ == Order::random; }
  /// A number in [0, bound).
  uint64_t random(uint64_t bound);

 private:
  RunOrder(Order order, uint64_t seed) : order_(order), state_(seed) {}
  Order order_;
  uint64_t state_;
};

/// `forward`, `backward`, `warps`, `random` or `random:SEED`; what the environment's EMULATOR_ORDER
/// gives at start. Throws std::invalid_argument.
void set_order(const std::string& text);

/// When streams run what is queued: `eager` (at once), `lazy` (only when somebody waits for it: the
/// latest moment CUDA allows) or `random` (after random pauses). From EMULATOR_STREAMS at start.
enum class StreamPace : uint8_t { eager, lazy, random };
StreamPace stream_pace();
void set_stream_pace(const std::string& text);

}  // namespace phalanx::emulator
