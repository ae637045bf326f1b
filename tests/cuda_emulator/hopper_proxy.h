// What TMA and wgmma (the "async proxy" of the PTX ISA) see of shared memory. Stores of threads are
// in the "generic proxy" and need fence.proxy.async before the async proxy reads them.
#pragma once

#include <cstdint>
#include <vector>

namespace phalanx::emulator {

/// The async proxy's view of the dynamic shared memory of one block. Stores cannot be watched here,
/// so the check is one-sided: bytes that changed although no thread fenced since they were last
/// known are an error; a fence by the wrong thread passes.
class AsyncProxy {
 public:
  /// A thread executed fence.proxy.async.
  void fence() { ++fences_; }
  /// The async proxy wrote what is now in `bytes` at `data`, address `address` of the window.
  void wrote(uint32_t address, const unsigned char* data, uint32_t bytes);
  /// Whether the async proxy may see the 16 bytes that are now at `data`.
  bool sees(uint32_t address, const unsigned char* data);

 private:
  void prepare();
  uint32_t fences_ = 0;
  std::vector<unsigned char> known_;  // the content as the async proxy knows it
  std::vector<uint32_t> stamps_;      // fences executed when 16 bytes became known
};

}  // namespace phalanx::emulator
