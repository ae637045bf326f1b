// Gaps and pieces of one block.
#include "kernels/cuda/device_block.h"

#include <cuda_runtime_api.h>

#include <iterator>

#include "kernels/base/arena.h"
#include "kernels/cuda/cuda_error.h"

namespace phalanx {

DeviceBlock::DeviceBlock(int64_t bytes) : bytes_(bytes) {
  void* memory = nullptr;
  cuda_check(cudaMalloc(&memory, static_cast<size_t>(bytes)), "cudaMalloc");
  memory_ = static_cast<char*>(memory);
  gaps_[0] = bytes;
}

DeviceBlock::~DeviceBlock() {
  static_cast<void>(cudaFree(memory_));
}

void* DeviceBlock::take(int64_t bytes) {
  const int64_t size = (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
  for (const auto& [begin, end] : gaps_) {
    if (end - begin < size) continue;
    const int64_t place = begin;
    const int64_t rest = end;
    gaps_.erase(place);
    if (place + size < rest) gaps_[place + size] = rest;
    pieces_[place] = place + size;
    return memory_ + place;
  }
  return nullptr;
}

void DeviceBlock::give_back(void* piece) {
  const auto found = pieces_.find(static_cast<char*>(piece) - memory_);
  auto [begin, end] = *found;
  pieces_.erase(found);
  const auto after = gaps_.find(end);
  if (after != gaps_.end()) {
    end = after->second;
    gaps_.erase(after);
  }
  const auto next = gaps_.lower_bound(begin);
  if (next != gaps_.begin() && std::prev(next)->second == begin)
    std::prev(next)->second = end;
  else
    gaps_[begin] = end;
}

}  // namespace phalanx
