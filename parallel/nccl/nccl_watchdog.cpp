// The loop of the watchdog.
#include "parallel/nccl/nccl_watchdog.h"

#include "kernels/cuda/cuda_error.h"

namespace phalanx {

NcclWatchdog::NcclWatchdog(std::chrono::milliseconds interval, int device_index)
    : interval_(interval), thread_([this, device_index] { run(device_index); }) {}

NcclWatchdog::~NcclWatchdog() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void NcclWatchdog::add(NcclWatched& watched) {
  const std::lock_guard lock(mutex_);
  watched_.push_back(&watched);
}

void NcclWatchdog::remove(NcclWatched& watched) {
  const std::lock_guard lock(mutex_);
  std::erase(watched_, &watched);
}

void NcclWatchdog::report_failure(const std::string& text) {
  const std::lock_guard lock(failure_mutex_);
  if (failed_) return;
  failure_ = text;
  failed_ = true;
}

void NcclWatchdog::throw_if_failed() {
  if (!failed_) return;
  const std::lock_guard lock(failure_mutex_);
  fail(failure_);
}

// Asking for an event while another thread captures a graph would spoil the capture, unless this
// thread says that only its own captures concern it.
void NcclWatchdog::run(int device_index) {
  static_cast<void>(cudaSetDevice(device_index));
  cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal;
  static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode));
  std::unique_lock lock(mutex_);
  while (!closed_) {
    changed_.wait_for(lock, interval_, [this] { return closed_; });
    for (NcclWatched* watched : watched_) watched->look();
  }
}

}  // namespace phalanx
