// The stream functions of the runtime API.
#include "tests/cuda_emulator/stream.h"

#include <utility>

#include "tests/cuda_emulator/counters.h"
#include "tests/cuda_emulator/runtime_state.h"

namespace phalanx::emulator {

Handles& handles() {
  static auto* all = new Handles;  // never destroyed: streams may run until the process ends
  return *all;
}

cudaStream_t find_stream(cudaStream_t stream) {
  Handles& all = handles();
  if (stream != nullptr && stream != cudaStreamLegacy)
    return all.streams.contains(stream) ? stream : nullptr;
  const auto device = static_cast<size_t>(current_device());
  if (all.default_streams.size() <= device) all.default_streams.resize(device + 1, nullptr);
  cudaStream_t& known = all.default_streams[device];
  if (known == nullptr) {
    known = new CUstream_st{.device = static_cast<int>(device),
                            .is_default = true,
                            .timeline = std::make_shared<Timeline>(static_cast<int>(device))};
    all.streams.insert(known);
  }
  return known;
}

namespace {

/// Makes the next task of `stream` wait for what the default stream's rule puts before it: the
/// default stream waits for all blocking streams and they for it. The lock is held.
cudaError_t order_with_default(cudaStream_t stream) {
  if (!stream->blocking) return cudaSuccess;
  for (cudaStream_t other : handles().streams) {
    const bool ordered = other != stream && other->blocking && other->device == stream->device &&
                         (other->is_default || stream->is_default);
    if (!ordered) continue;
    if (active_capture(other) != nullptr) {
      active_capture(other)->invalidated = true;
      return cudaErrorStreamCaptureImplicit;
    }
    if (const uint64_t ticket = other->timeline->submitted(); ticket > 0)
      stream->timeline->submit([timeline = other->timeline, ticket] { timeline->wait(ticket); });
  }
  return cudaSuccess;
}

cudaError_t create_stream(cudaStream_t* created, unsigned flags) {
  if (created == nullptr || flags > cudaStreamNonBlocking) return note(cudaErrorInvalidValue);
  if (device_error() != cudaSuccess) return note(device_error());
  Handles& all = handles();
  const std::lock_guard lock(all.mutex);
  *created = new CUstream_st{.device = current_device(),
                             .blocking = flags != cudaStreamNonBlocking,
                             .timeline = std::make_shared<Timeline>(current_device())};
  all.streams.insert(*created);
  return cudaSuccess;
}

/// Queues or captures; `timeline` and `ticket` tell what to wait for (null: it was captured).
cudaError_t queue_task(cudaStream_t stream, Task task, std::shared_ptr<Timeline>* timeline,
                       uint64_t* ticket) {
  if (device_error() != cudaSuccess) return device_error();
  const std::lock_guard lock(handles().mutex);
  stream = find_stream(stream);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (active_capture(stream) != nullptr) return add_node(stream, std::move(task));
  if (const cudaError_t error = order_with_default(stream); error != cudaSuccess) return error;
  *timeline = stream->timeline;
  *ticket = stream->timeline->submit(std::move(task));
  return cudaSuccess;
}

}  // namespace

cudaError_t submit(cudaStream_t stream, Task task) {
  std::shared_ptr<Timeline> timeline;
  uint64_t ticket = 0;
  return note(queue_task(stream, std::move(task), &timeline, &ticket));
}

cudaError_t submit_and_wait(cudaStream_t stream, Task task) {
  std::shared_ptr<Timeline> timeline;
  uint64_t ticket = 0;
  const cudaError_t error = queue_task(stream, std::move(task), &timeline, &ticket);
  if (timeline != nullptr) timeline->wait(ticket);
  return note(error == cudaSuccess ? device_error() : error);
}

bool is_capturing(cudaStream_t stream) {
  const std::lock_guard lock(handles().mutex);
  stream = find_stream(stream);
  return stream != nullptr && active_capture(stream) != nullptr;
}

int device_of(cudaStream_t stream) {
  const std::lock_guard lock(handles().mutex);
  stream = find_stream(stream);
  return stream == nullptr ? -1 : stream->device;
}

void wait_for_device() {
  std::vector<std::pair<std::shared_ptr<Timeline>, uint64_t>> all;
  {
    const std::lock_guard lock(handles().mutex);
    for (cudaStream_t stream : handles().streams)
      if (stream->device == current_device())
        all.emplace_back(stream->timeline, stream->timeline->submitted());
  }
  for (const auto& [timeline, ticket] : all) timeline->wait(ticket);
}

}  // namespace phalanx::emulator

using namespace phalanx::emulator;  // NOLINT: the API below is C

cudaError_t cudaStreamCreate(cudaStream_t* pStream) {
  return create_stream(pStream, 0);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* pStream, unsigned int flags) {
  return create_stream(pStream, flags);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* pStream, unsigned int flags, int) {
  return create_stream(pStream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::shared_ptr<Timeline> timeline;  // joined outside of the lock: its tasks may need the lock
  {
    const std::lock_guard lock(handles().mutex);
    if (stream == nullptr || stream->is_default || handles().streams.erase(stream) == 0)
      return note(cudaErrorInvalidResourceHandle);
    if (Capture* capture = active_capture(stream)) capture->invalidated = true;
    timeline = stream->timeline;
    delete stream;
  }
  timeline->wait(timeline->submitted());
  return note(device_error());
}

namespace {
/// The timeline of a stream that may be waited for.
cudaError_t waitable(cudaStream_t stream, std::shared_ptr<Timeline>* timeline) {
  if (device_error() != cudaSuccess) return device_error();
  const std::lock_guard lock(handles().mutex);
  stream = find_stream(stream);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (Capture* capture = active_capture(stream)) {
    capture->invalidated = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  if (const cudaError_t error = order_with_default(stream); error != cudaSuccess) return error;
  *timeline = stream->timeline;
  return cudaSuccess;
}
}  // namespace

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  std::shared_ptr<Timeline> timeline;
  if (const cudaError_t error = waitable(stream, &timeline); error != cudaSuccess)
    return note(error);
  ++counters().stream_synchronisations;
  timeline->wait(timeline->submitted());
  return note(device_error());
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  std::shared_ptr<Timeline> timeline;
  if (const cudaError_t error = waitable(stream, &timeline); error != cudaSuccess)
    return note(error);
  if (!timeline->done(timeline->submitted())) return cudaErrorNotReady;
  return note(device_error());
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void* userData) {
  if (fn == nullptr) return note(cudaErrorInvalidValue);
  return submit(stream, [fn, userData] { fn(userData); });
}
