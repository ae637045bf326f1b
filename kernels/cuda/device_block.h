// DeviceBlock: one piece of a GPU's memory, taken at once and cut into smaller ones.
#pragma once

#include <cstdint>
#include <map>

namespace phalanx {

/// Owns the memory. First fit among the gaps, in order of address: a run takes almost everything at
/// its start and keeps it to its end, so nothing cleverer pays. One thread.
class DeviceBlock {
 public:
  explicit DeviceBlock(int64_t bytes);
  ~DeviceBlock();
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;

  int64_t bytes() const { return bytes_; }
  /// `bytes` aligned to Arena::kAlignment, or null if no gap is large enough.
  void* take(int64_t bytes);
  /// What `take` gave.
  void give_back(void* piece);

 private:
  int64_t bytes_;
  char* memory_ = nullptr;
  std::map<int64_t, int64_t> gaps_;    // begin -> end, never adjacent
  std::map<int64_t, int64_t> pieces_;  // begin -> end
};

}  // namespace phalanx
