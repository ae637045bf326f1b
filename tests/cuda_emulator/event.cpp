// Events: a place in a stream's queue, or the end of captured work.
#include "tests/cuda_emulator/counters.h"
#include "tests/cuda_emulator/runtime_state.h"

using namespace phalanx::emulator;  // NOLINT: the API below is C

namespace {

/// The capture an event was recorded in, if it goes on. The lock is held.
Capture* capture_of(cudaEvent_t event) {
  return event->capture != nullptr && !event->capture->ended ? event->capture.get() : nullptr;
}

/// Lets a stream of a capture, or one that joins it now, come after the event.
cudaError_t wait_in_capture(cudaStream_t stream, cudaEvent_t event) {
  Capture* const capture = capture_of(event);
  Capture* const own = active_capture(stream);
  if (capture == nullptr) {
    own->invalidated = true;  // an event from outside of the graph
    return cudaErrorStreamCaptureIsolation;
  }
  if (stream->is_default) {
    capture->invalidated = true;
    return cudaErrorStreamCaptureImplicit;
  }
  if (own != nullptr && own != capture) {
    own->invalidated = capture->invalidated = true;
    return cudaErrorStreamCaptureMerge;
  }
  if (own == nullptr) {
    stream->capture = event->capture;
    stream->tails.clear();
  }
  stream->tails.insert(stream->tails.end(), event->nodes.begin(), event->nodes.end());
  return capture->invalidated ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}

/// The state of an event that may be waited for.
struct Moment {
  std::shared_ptr<Timeline> timeline;
  uint64_t ticket = 0;
};
cudaError_t moment_of(cudaEvent_t event, Moment* moment) {
  if (device_error() != cudaSuccess) return device_error();
  const std::lock_guard lock(handles().mutex);
  if (!handles().events.contains(event)) return cudaErrorInvalidResourceHandle;
  if (Capture* capture = capture_of(event)) {
    capture->invalidated = true;
    return cudaErrorCapturedEvent;
  }
  *moment = {event->timeline, event->ticket};
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  if (event == nullptr) return note(cudaErrorInvalidValue);
  if (device_error() != cudaSuccess) return note(device_error());
  const std::lock_guard lock(handles().mutex);
  *event =
      new CUevent_st{.device = current_device(), .timed = (flags & cudaEventDisableTiming) == 0};
  handles().events.insert(*event);
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard lock(handles().mutex);
  if (handles().events.erase(event) == 0) return note(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (device_error() != cudaSuccess) return note(device_error());
  const std::lock_guard lock(handles().mutex);
  stream = find_stream(stream);
  if (stream == nullptr || !handles().events.contains(event))
    return note(cudaErrorInvalidResourceHandle);
  if (stream->device != event->device) return note(cudaErrorInvalidResourceHandle);
  if (Capture* capture = active_capture(stream)) {
    event->capture = stream->capture;
    event->nodes = stream->tails;
    return note(capture->invalidated ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
  }
  event->capture = nullptr;
  event->timeline = stream->timeline;
  auto time = std::make_shared<std::chrono::steady_clock::time_point>();
  event->time = time;
  event->ticket = stream->timeline->submit([time] { *time = std::chrono::steady_clock::now(); });
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  if (device_error() != cudaSuccess) return note(device_error());
  const std::lock_guard lock(handles().mutex);
  stream = find_stream(stream);
  if (stream == nullptr || !handles().events.contains(event))
    return note(cudaErrorInvalidResourceHandle);
  if (active_capture(stream) != nullptr || capture_of(event) != nullptr)
    return note(wait_in_capture(stream, event));
  if (event->timeline != nullptr && event->timeline != stream->timeline)
    stream->timeline->submit(
        [timeline = event->timeline, ticket = event->ticket] { timeline->wait(ticket); });
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (capture_forbids()) return note(cudaErrorStreamCaptureUnsupported);
  Moment moment;
  if (const cudaError_t error = moment_of(event, &moment); error != cudaSuccess) return note(error);
  if (moment.timeline != nullptr && !moment.timeline->done(moment.ticket)) return cudaErrorNotReady;
  return note(device_error());
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (capture_forbids()) return note(cudaErrorStreamCaptureUnsupported);
  Moment moment;
  if (const cudaError_t error = moment_of(event, &moment); error != cudaSuccess) return note(error);
  ++counters().event_synchronisations;
  if (moment.timeline != nullptr) moment.timeline->wait(moment.ticket);
  return note(device_error());
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  Moment first;
  Moment last;
  if (const cudaError_t error = moment_of(start, &first); error != cudaSuccess) return note(error);
  if (const cudaError_t error = moment_of(end, &last); error != cudaSuccess) return note(error);
  if (first.timeline == nullptr || last.timeline == nullptr || !start->timed || !end->timed)
    return note(cudaErrorInvalidResourceHandle);
  if (!first.timeline->done(first.ticket) || !last.timeline->done(last.ticket))
    return cudaErrorNotReady;
  *ms = std::chrono::duration<float, std::milli>(*end->time - *start->time).count();
  return cudaSuccess;
}
