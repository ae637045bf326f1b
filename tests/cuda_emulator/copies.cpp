// Copies and fills. Whatever is not wholly inside of one allocation of the right kind is refused.
// Pageable host memory is handled as the programming guide promises it: read before the call
// returns, written before the call returns, and not allowed in a graph.
#include <cstring>
#include <memory>
#include <vector>

#include "tests/cuda_emulator/counters.h"
#include "tests/cuda_emulator/memory.h"
#include "tests/cuda_emulator/runtime_state.h"

using namespace phalanx::emulator;  // NOLINT: the API below is C

namespace {

struct Copy {
  char* target;
  size_t target_pitch;
  const char* source;
  size_t source_pitch;
  size_t width;
  size_t height;

  size_t target_bytes() const { return (height - 1) * target_pitch + width; }
  size_t source_bytes() const { return (height - 1) * source_pitch + width; }
  void run() const {
    for (size_t row = 0; row < height; ++row)
      std::memmove(target + row * target_pitch, source + row * source_pitch, width);
  }
};

enum class Side : uint8_t { device, pinned, pageable, wrong };

/// What memory one end of a copy is in, if it lies wholly there.
Side side_of(const void* pointer, size_t bytes) {
  const MemoryPlace place = place_of(pointer);
  if (place.type == cudaMemoryTypeUnregistered) return Side::pageable;
  if (bytes > place.bytes_from_here) return Side::wrong;
  return place.type == cudaMemoryTypeDevice ? Side::device : Side::pinned;
}

bool fits_kind(cudaMemcpyKind kind, bool from_device, bool to_device) {
  switch (kind) {
    case cudaMemcpyHostToHost:
      return !from_device && !to_device;
    case cudaMemcpyHostToDevice:
      return !from_device && to_device;
    case cudaMemcpyDeviceToHost:
      return from_device && !to_device;
    case cudaMemcpyDeviceToDevice:
      return from_device && to_device;
    case cudaMemcpyDefault:
      return true;
  }
  return false;
}

void count(const Copy& copy, bool from_device, bool to_device) {
  const auto bytes = static_cast<int64_t>(copy.width * copy.height);
  if (!from_device && to_device) counters().bytes_to_device += bytes;
  if (from_device && !to_device) counters().bytes_to_host += bytes;
  if (from_device && to_device) counters().bytes_on_device += bytes;
}

void invalidate_capture(cudaStream_t stream) {
  const std::lock_guard lock(handles().mutex);
  stream = find_stream(stream);
  if (stream != nullptr && active_capture(stream) != nullptr)
    active_capture(stream)->invalidated = true;
}

cudaError_t submit_copy(const Copy& copy, cudaMemcpyKind kind, cudaStream_t stream, bool waits) {
  if (copy.width == 0 || copy.height == 0) return note(device_error());
  const Side from = side_of(copy.source, copy.source_bytes());
  const Side to = side_of(copy.target, copy.target_bytes());
  if (from == Side::wrong || to == Side::wrong) return note(cudaErrorInvalidValue);
  const bool from_device = from == Side::device;
  const bool to_device = to == Side::device;
  if (!fits_kind(kind, from_device, to_device)) return note(cudaErrorInvalidValue);
  count(copy, from_device, to_device);
  const bool pageable = from == Side::pageable || to == Side::pageable;
  if (pageable && is_capturing(stream)) {
    invalidate_capture(stream);
    return note(cudaErrorStreamCaptureUnsupported);
  }
  const auto run = [copy] { copy.run(); };
  if (to == Side::pageable || (waits && !(from_device && to_device)))
    return submit_and_wait(stream, run);
  if (from != Side::pageable) return submit(stream, run);
  auto staged = std::make_shared<std::vector<char>>(copy.source, copy.source + copy.source_bytes());
  return submit(stream, [copy, staged] {
    Copy from_staging = copy;
    from_staging.source = staged->data();
    from_staging.run();
  });
}

cudaError_t submit_fill(const Copy& area, int value, cudaStream_t stream) {
  if (area.width == 0 || area.height == 0) return note(device_error());
  if (!is_device_range(area.target, area.target_bytes())) return note(cudaErrorInvalidValue);
  return submit(stream, [area, value] {
    for (size_t row = 0; row < area.height; ++row)
      std::memset(area.target + row * area.target_pitch, value, area.width);
  });
}

Copy plain(void* target, const void* source, size_t bytes) {
  return {static_cast<char*>(target), bytes, static_cast<const char*>(source), bytes, bytes, 1};
}

}  // namespace

cudaError_t cudaMemcpy(void* dst, const void* src, size_t count, enum cudaMemcpyKind kind) {
  if (capture_forbids()) return note(cudaErrorStreamCaptureUnsupported);
  ++counters().stream_synchronisations;
  return submit_copy(plain(dst, src, count), kind, nullptr, true);
}

cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t count, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return submit_copy(plain(dst, src, count), kind, stream, false);
}

cudaError_t cudaMemcpy2DAsync(void* dst, size_t dpitch, const void* src, size_t spitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream) {
  if (width > dpitch || width > spitch) return note(cudaErrorInvalidValue);
  return submit_copy(
      {static_cast<char*>(dst), dpitch, static_cast<const char*>(src), spitch, width, height}, kind,
      stream, false);
}

cudaError_t cudaMemset(void* devPtr, int value, size_t count) {
  if (capture_forbids()) return note(cudaErrorStreamCaptureUnsupported);
  return submit_fill(plain(devPtr, nullptr, count), value, nullptr);
}

cudaError_t cudaMemsetAsync(void* devPtr, int value, size_t count, cudaStream_t stream) {
  return submit_fill(plain(devPtr, nullptr, count), value, stream);
}

cudaError_t cudaMemset2DAsync(void* devPtr, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
  if (width > pitch) return note(cudaErrorInvalidValue);
  return submit_fill({static_cast<char*>(devPtr), pitch, nullptr, 0, width, height}, value, stream);
}
