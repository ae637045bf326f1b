// The async proxy's view of shared memory.
#include "tests/cuda_emulator/hopper_proxy.h"

#include <algorithm>
#include <cstring>

#include "tests/cuda_emulator/shared_memory.h"

namespace phalanx::emulator {
namespace {
constexpr uint32_t kPiece = 16;
constexpr unsigned char kPoison = 0xff;  // as prepare_shared_memory writes
}  // namespace

void AsyncProxy::prepare() {
  if (!known_.empty()) return;
  known_.assign(kSharedWindowStart + kSharedBytesAtMost, kPoison);
  stamps_.assign(known_.size() / kPiece, 0);
}

void AsyncProxy::wrote(uint32_t address, const unsigned char* data, uint32_t bytes) {
  prepare();
  std::memcpy(known_.data() + address, data, bytes);
  std::fill_n(stamps_.begin() + address / kPiece, bytes / kPiece, fences_);
}

bool AsyncProxy::sees(uint32_t address, const unsigned char* data) {
  prepare();
  unsigned char* const known = known_.data() + address;
  if (std::memcmp(known, data, kPiece) == 0) return true;
  uint32_t& stamp = stamps_[address / kPiece];
  if (stamp == fences_) return false;
  stamp = fences_;
  std::memcpy(known, data, kPiece);
  return true;
}

}  // namespace phalanx::emulator
