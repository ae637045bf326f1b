// Recording of ranges.
#include "kernels/base/trace.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "kernels/base/flight_recorder.h"

namespace phalanx {
namespace {

thread_local Trace* current_trace = nullptr;

int begin_in_flight(FlightRecorder& recorder, std::string_view name, TraceLane lane) {
  if (lane == TraceLane::phase) return recorder.begin(flight_entry(FlightKind::phase, name));
  recorder.progress();
  return -1;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Trace::Trace(std::unique_ptr<DeviceClock> clock) : clock_(std::move(clock)) {}

Trace::~Trace() {
  if (current_trace == this) current_trace = nullptr;
}

Trace* Trace::current() {
  return current_trace;
}

void Trace::start() {
  check(current_trace == nullptr, "a trace records on this thread already");
  current_trace = this;
  // The first stamp ties the two clocks: the device is idle at the start of a step.
  if (clock_ != nullptr && num_marks_ == 0) {
    clock_->mark();
    ++num_marks_;
    clock_start_ = now();
  }
}

void Trace::stop() {
  if (current_trace == this) current_trace = nullptr;
}

size_t Trace::begin(std::string_view name, TraceLane lane) {
  TraceEvent event{.name = std::string(name), .lane = lane};
  if (clock_ != nullptr && lane == TraceLane::op) {
    clock_->mark();
    event.first_mark = num_marks_++;
  }
  event.begin = now();
  events_.push_back(std::move(event));
  return events_.size() - 1;
}

void Trace::end(size_t index) {
  TraceEvent& event = events_[index];
  event.end = now();
  if (event.first_mark < 0) return;
  clock_->mark();
  event.last_mark = num_marks_++;
}

void Trace::add_work(size_t event, double flops, int64_t bytes) {
  events_[event].flops += flops;
  events_[event].bytes += bytes;
}

std::vector<TraceEvent> Trace::take() {
  if (clock_ != nullptr && num_marks_ > 0) {
    const std::vector<double> seconds = clock_->seconds();
    for (TraceEvent& event : events_) {
      if (event.last_mark < 0) continue;
      event.device_begin = clock_start_ + seconds[static_cast<size_t>(event.first_mark)];
      event.device_end = clock_start_ + seconds[static_cast<size_t>(event.last_mark)];
    }
  }
  return std::exchange(events_, {});
}

RangeHooks& range_hooks() {
  static RangeHooks hooks;
  return hooks;
}

TraceRange::TraceRange(const char* name, TraceLane lane) : trace_(Trace::current()) {
  if (FlightRecorder* recorder = FlightRecorder::current())
    flight_slot_ = begin_in_flight(*recorder, name, lane);
  if (range_hooks().push != nullptr) range_hooks().push(name);
  if (trace_ != nullptr) event_ = trace_->begin(name, lane);
}

TraceRange::~TraceRange() {
  if (FlightRecorder* recorder = FlightRecorder::current()) recorder->end(flight_slot_);
  if (trace_ != nullptr) {
    trace_->end(event_);
    trace_->add_work(event_, flops_, bytes_);
  }
  if (range_hooks().pop != nullptr) range_hooks().pop();
}

void TraceRange::add_bytes(const Tensor& tensor) {
  if (trace_ == nullptr || tensor.data == nullptr) return;
  const void* const* end = seen_ + num_seen_;
  if (std::find<const void* const*>(seen_, end, tensor.data) != end) return;
  bytes_ += tensor.bytes();
  if (num_seen_ < kMaxTensors) seen_[num_seen_++] = tensor.data;
}

}  // namespace phalanx
