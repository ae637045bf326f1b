// HostStaging: the pinned host memory that copies between host and GPU go through, because only
// from there does a copy run beside the host's and the GPU's work.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

namespace phalanx {

/// A ring of slots. A copy to the GPU returns when its bytes are in slots; it waits only for slots
/// that are still on their way. Owns staging_bytes(Device::cuda) of pinned memory from the first
/// copy on. One thread.
class HostStaging {
 public:
  HostStaging() = default;
  ~HostStaging();
  HostStaging(const HostStaging&) = delete;
  HostStaging& operator=(const HostStaging&) = delete;

  /// Rows of `row_bytes`, `pitch` bytes apart on the GPU and next to each other on the host.
  struct Rows {
    void* target;
    int64_t pitch;
    int64_t row_bytes;
    int64_t rows;
  };
  void to_device(const Rows& rows, const void* source, cudaStream_t stream);
  /// Waits for the bytes.
  void to_host(void* target, const void* source, int64_t bytes, cudaStream_t stream);

 private:
  static constexpr size_t kSlots = 8;
  struct Slot {
    char* memory = nullptr;
    cudaEvent_t done = nullptr;  // its last copy; never recorded: as if done
  };
  Slot& next_slot();
  void make_slots();
  void bytes_to_device(char* target, const char* source, int64_t bytes, cudaStream_t stream);

  void* memory_ = nullptr;
  int64_t slot_bytes_ = 0;
  std::array<Slot, kSlots> slots_{};
  size_t next_ = 0;
};

}  // namespace phalanx
