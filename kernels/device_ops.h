// DeviceOps: the part of Backend that is a device rather than mathematics: its memory, the way
// between host and device, and sequences of ops that are recorded once and run many times.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kernels/base/tensor.h"
#include "kernels/base/trace.h"

namespace phalanx {

/// What a backend computes on.
struct DeviceInfo {
  std::string name;         // for people: "NVIDIA H100 80GB HBM3"
  std::string memory_key;   // the same on all ranks that take from the same memory; empty: the host
  int64_t free_bytes = -1;  // of that memory, now; -1: ask the host
};

/// Memory that the ops of a device take for themselves: one workspace.
int64_t workspace_bytes(Device device);
/// Host memory that copies to and from the device go through.
int64_t staging_bytes(Device device);

/// Ops with their arguments, ready to run again on the same memory. Belongs to the backend that
/// recorded it and ends before it.
class RecordedOps {
 public:
  virtual ~RecordedOps() = default;
  RecordedOps() = default;
  RecordedOps(const RecordedOps&) = delete;
  RecordedOps& operator=(const RecordedOps&) = delete;
  /// Queues them all, in the order of other ops.
  virtual void replay() = 0;
};

class DeviceOps {
 public:
  virtual ~DeviceOps() = default;
  DeviceOps() = default;
  DeviceOps(const DeviceOps&) = delete;
  DeviceOps& operator=(const DeviceOps&) = delete;

  virtual Device device() const = 0;
  virtual DeviceInfo info() const { return {.name = device_name(device())}; }

  /// Device memory, zeroed and aligned to Arena::kAlignment; freed with the last owner.
  virtual std::shared_ptr<void> allocate(int64_t bytes) = 0;
  /// Takes `bytes` at once, workspace_bytes among them; `allocate` cuts from the rest as long as it
  /// lasts. A GPU's own allocation
  /// is slow and waits for the whole device, so a run does it once. Nothing on the host.
  virtual void reserve(int64_t bytes) { static_cast<void>(bytes); }
  /// Waits until all work handed in so far is done.
  virtual void synchronize() = 0;
  /// For profiles: of a device that works on its own; null if ops are done when they return.
  virtual std::unique_ptr<DeviceClock> device_clock() { return nullptr; }

  /// Host memory to a tensor on the device, in the order of the ops; returns when `source` may be
  /// reused.
  void upload(const Tensor& target, const void* source);
  /// The same, but beside the ops handed in so far, none of which may use `target`; ops handed in
  /// later find the bytes there.
  void upload_early(const Tensor& target, const void* source);
  /// Host [rows, columns] to columns [column, column + columns) of all rows of `target`, a matrix.
  void upload_columns(const Tensor& target, int64_t column, int64_t columns, const void* source);
  /// Tensor to host memory; returns when the bytes are there.
  void download(void* target, const Tensor& source);

  /// The ops that `hand_in` hands in, which do not run now. It must hand in the same ops whenever
  /// it is called: no copies from or to the host, no memory taken. Throws where the backend cannot
  /// record.
  virtual std::unique_ptr<RecordedOps> record(const std::function<void()>& hand_in);

 private:
  virtual void upload_impl(const Tensor& target, const void* source) = 0;
  virtual void upload_early_impl(const Tensor& target, const void* source) {
    upload_impl(target, source);
  }
  virtual void upload_columns_impl(const Tensor& target, int64_t column, int64_t columns,
                                   const void* source) = 0;
  virtual void download_impl(void* target, const Tensor& source) = 0;
};

}  // namespace phalanx
