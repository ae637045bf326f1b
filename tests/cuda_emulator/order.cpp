// The order of runs: settings from the environment or from a test.
#include "tests/cuda_emulator/order.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace phalanx::emulator {
namespace {

struct Setting {
  std::atomic<Order> order{Order::forward};
  std::atomic<uint64_t> seed{1};
  std::atomic<StreamPace> pace{StreamPace::eager};
};

void apply_order(Setting& setting, const std::string& text) {
  if (text == "forward") {
    setting.order = Order::forward;
  } else if (text == "backward") {
    setting.order = Order::backward;
  } else if (text == "warps") {
    setting.order = Order::warps;
  } else if (text == "random" || text.starts_with("random:")) {
    setting.order = Order::random;
    setting.seed = text == "random" ? 1 : std::stoull(text.substr(7));
  } else {
    throw std::invalid_argument(
        "EMULATOR_ORDER is forward, backward, warps, random or random:SEED, not " + text);
  }
}

void apply_pace(Setting& setting, const std::string& text) {
  if (text == "eager") {
    setting.pace = StreamPace::eager;
  } else if (text == "lazy") {
    setting.pace = StreamPace::lazy;
  } else if (text == "random") {
    setting.pace = StreamPace::random;
  } else {
    throw std::invalid_argument("EMULATOR_STREAMS is eager, lazy or random, not " + text);
  }
}

Setting& setting() {
  static Setting* the_setting = [] {
    auto* fresh = new Setting;  // lives as long as the streams, which end with the process
    if (const char* text = std::getenv("EMULATOR_ORDER")) apply_order(*fresh, text);
    if (const char* text = std::getenv("EMULATOR_STREAMS")) apply_pace(*fresh, text);
    return fresh;
  }();
  return *the_setting;
}

}  // namespace

RunOrder RunOrder::current() {
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15U;  // golden ratio: neighbours share no low bits
  return {setting().order, setting().seed.fetch_add(kStep)};
}

uint64_t RunOrder::random(uint64_t bound) {
  // splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
  uint64_t z = state_ += 0x9e3779b97f4a7c15U;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return (z ^ (z >> 31)) % bound;
}

void set_order(const std::string& text) {
  apply_order(setting(), text);
}
StreamPace stream_pace() {
  return setting().pace;
}
void set_stream_pace(const std::string& text) {
  apply_pace(setting(), text);
}

}  // namespace phalanx::emulator
