// Streams: each is a host thread that works off a queue, so that a missing synchronisation of the
// program shows. During capture, work becomes a node of a graph instead.
#pragma once

#include <functional>
#include <memory>

#include "tests/cuda_emulator/include/cuda_runtime_api.h"

namespace phalanx::emulator {

using Task = std::function<void()>;

/// Queues `task` on `stream` (nullptr: the default stream), or adds it to the graph that the stream
/// is capturing. A task that throws std::exception breaks the device: every later call reports it.
/// `task` must be copyable and may run several times (replays of a graph).
cudaError_t submit(cudaStream_t stream, Task task);

/// As submit; waits until it ran.
cudaError_t submit_and_wait(cudaStream_t stream, Task task);

/// The error that a kernel left, which all later calls return; cudaSuccess without one.
cudaError_t device_error();
/// Its text ("" without one).
const char* device_error_text();
/// Breaks the device with this text, which is also printed.
void break_device(cudaError_t code, const std::string& text);

/// Notes `code` for cudaGetLastError, unless it is cudaSuccess or cudaErrorNotReady; returns it.
cudaError_t note(cudaError_t code);

/// Whether the calling thread may not call something that the capture of a graph forbids (memory,
/// waiting); if so the captures are invalidated.
bool capture_forbids();

bool is_capturing(cudaStream_t stream);
/// The device the stream belongs to.
int device_of(cudaStream_t stream);
/// Waits until everything queued on all streams of the current device ran.
void wait_for_device();

}  // namespace phalanx::emulator
