// Trace: what a rank did when, for `--profile`. While one records on a thread, every op, collective
// and phase of a step there leaves a range; otherwise a range costs one test of a pointer.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/tensor.h"

namespace phalanx {

/// Stamps the points that a device's own work has reached. One thread calls.
class DeviceClock {
 public:
  virtual ~DeviceClock() = default;
  /// Queues the next stamp behind the work handed in so far.
  virtual void mark() = 0;
  /// Waits for all stamps; seconds since the first one.
  virtual std::vector<double> seconds() = 0;
};

enum class TraceLane : uint8_t { phase, op, communication };

/// Seconds are those of the host's steady clock. Ops of a device with a clock of its own have the
/// host's times, when they were queued, and the device's.
struct TraceEvent {
  std::string name;
  TraceLane lane = TraceLane::phase;
  double begin = 0, end = 0;
  double device_begin = -1, device_end = -1;  // -1: the host did the work
  int64_t first_mark = -1, last_mark = -1;    // numbers of the device's stamps
  double flops = 0;
  int64_t bytes = 0;  // of the op's tensors, each once
};

class Trace {
 public:
  /// `clock`: of a device that works on its own; none if ops are done when they return.
  explicit Trace(std::unique_ptr<DeviceClock> clock = nullptr);
  ~Trace();
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  /// The trace that records on the calling thread; null if none does.
  static Trace* current();
  /// From now on this thread's ranges are recorded here, until `stop` on the same thread.
  void start();
  void stop();

  size_t begin(std::string_view name, TraceLane lane);
  void end(size_t event);
  void add_work(size_t event, double flops, int64_t bytes);
  /// All ranges in the order they began, device times filled in. Waits for the device.
  std::vector<TraceEvent> take();

 private:
  std::unique_ptr<DeviceClock> clock_;
  int64_t num_marks_ = 0;
  double clock_start_ = 0;  // host time of the device's first stamp
  std::vector<TraceEvent> events_;
};

/// Told of every range whether a trace records or not: what a backend hands on to its vendor's
/// profiler. Set once, before threads start to compute.
struct RangeHooks {
  void (*push)(const char* name) = nullptr;
  void (*pop)() = nullptr;
};
RangeHooks& range_hooks();

/// One range, as long as the object lives. Phases are entries of the flight recorder too, and every
/// range is progress there.
class TraceRange {
 public:
  /// `name` must outlive the object.
  TraceRange(const char* name, TraceLane lane);
  ~TraceRange();
  TraceRange(const TraceRange&) = delete;
  TraceRange& operator=(const TraceRange&) = delete;

  bool recording() const { return trace_ != nullptr; }
  void add_flops(double flops) { flops_ += flops; }
  /// Counts the tensor's bytes unless it has been counted in this range.
  void add_bytes(const Tensor& tensor);

 private:
  static constexpr size_t kMaxTensors = 16;
  Trace* trace_;
  int flight_slot_ = -1;
  size_t event_ = 0;
  double flops_ = 0;
  int64_t bytes_ = 0;
  size_t num_seen_ = 0;
  const void* seen_[kMaxTensors];
};

}  // namespace phalanx
