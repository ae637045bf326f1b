// Pieces of copies on their way through the ring.
#include "kernels/cuda/host_staging.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/cuda_error.h"
#include "kernels/device_ops.h"

namespace phalanx {

HostStaging::~HostStaging() {
  for (const Slot& slot : slots_) {
    if (slot.done == nullptr) continue;
    static_cast<void>(cudaEventSynchronize(slot.done));
    static_cast<void>(cudaEventDestroy(slot.done));
  }
  static_cast<void>(cudaFreeHost(memory_));
}

void HostStaging::make_slots() {
  const int64_t bytes = staging_bytes(Device::cuda);
  cuda_check(cudaMallocHost(&memory_, static_cast<size_t>(bytes)), "cudaMallocHost");
  slot_bytes_ = bytes / static_cast<int64_t>(kSlots);
  for (size_t i = 0; i < kSlots; ++i) {
    slots_[i].memory = static_cast<char*>(memory_) + static_cast<int64_t>(i) * slot_bytes_;
    cuda_check(cudaEventCreateWithFlags(&slots_[i].done, cudaEventDisableTiming),
               "cudaEventCreate");
  }
}

/// The slot used longest ago, free to be written.
HostStaging::Slot& HostStaging::next_slot() {
  if (memory_ == nullptr) make_slots();
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % kSlots;
  // Asked first, because a wait would be one even where there is nothing to wait for.
  const cudaError_t state = cudaEventQuery(slot.done);
  if (state == cudaErrorNotReady)
    cuda_check(cudaEventSynchronize(slot.done), "cudaEventSynchronize");
  else
    cuda_check(state, "cudaEventQuery");
  return slot;
}

void HostStaging::bytes_to_device(char* target, const char* source, int64_t bytes,
                                  cudaStream_t stream) {
  while (bytes > 0) {
    Slot& slot = next_slot();
    const int64_t piece = std::min(bytes, slot_bytes_);
    std::memcpy(slot.memory, source, static_cast<size_t>(piece));
    cuda_check(cudaMemcpyAsync(target, slot.memory, static_cast<size_t>(piece),
                               cudaMemcpyHostToDevice, stream),
               "cudaMemcpyAsync");
    cuda_check(cudaEventRecord(slot.done, stream), "cudaEventRecord");
    target += piece;
    source += piece;
    bytes -= piece;
  }
}

void HostStaging::to_device(const Rows& rows, const void* source, cudaStream_t stream) {
  auto* to = static_cast<char*>(rows.target);
  const auto* from = static_cast<const char*>(source);
  if (rows.pitch == rows.row_bytes || rows.rows == 1)
    return bytes_to_device(to, from, rows.rows * rows.row_bytes, stream);
  for (int64_t row = 0; row < rows.rows;) {
    Slot& slot = next_slot();
    const int64_t count =
        std::min(rows.rows - row, slot_bytes_ / std::max<int64_t>(rows.row_bytes, 1));
    if (count == 0) {  // a row is larger than a slot
      bytes_to_device(to + row * rows.pitch, from + row * rows.row_bytes, rows.row_bytes, stream);
      ++row;
      continue;
    }
    const auto width = static_cast<size_t>(rows.row_bytes);
    std::memcpy(slot.memory, from + row * rows.row_bytes, static_cast<size_t>(count) * width);
    cuda_check(
        cudaMemcpy2DAsync(to + row * rows.pitch, static_cast<size_t>(rows.pitch), slot.memory,
                          width, width, static_cast<size_t>(count), cudaMemcpyHostToDevice, stream),
        "cudaMemcpy2DAsync");
    cuda_check(cudaEventRecord(slot.done, stream), "cudaEventRecord");
    row += count;
  }
}

// Half of the ring is on its way while the host empties the other half.
void HostStaging::to_host(void* target, const void* source, int64_t bytes, cudaStream_t stream) {
  struct Piece {
    const Slot* slot;
    int64_t begin;
    int64_t bytes;
  };
  std::array<Piece, kSlots / 2> pieces{};
  size_t first = 0;
  size_t last = 0;
  for (int64_t begin = 0; begin < bytes || first < last;) {
    if (begin < bytes && last - first < pieces.size()) {
      Slot& slot = next_slot();
      const int64_t piece = std::min(bytes - begin, slot_bytes_);
      cuda_check(cudaMemcpyAsync(slot.memory, static_cast<const char*>(source) + begin,
                                 static_cast<size_t>(piece), cudaMemcpyDeviceToHost, stream),
                 "cudaMemcpyAsync");
      cuda_check(cudaEventRecord(slot.done, stream), "cudaEventRecord");
      pieces[last++ % pieces.size()] = {&slot, begin, piece};
      begin += piece;
      continue;
    }
    const Piece& piece = pieces[first++ % pieces.size()];
    cuda_check(cudaEventSynchronize(piece.slot->done), "cudaEventSynchronize");
    std::memcpy(static_cast<char*>(target) + piece.begin, piece.slot->memory,
                static_cast<size_t>(piece.bytes));
  }
}

}  // namespace phalanx
