// The dynamic buffer of each host thread, and the poisoning of `__shared__` variables.
#include "tests/cuda_emulator/shared_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "tests/cuda_emulator/symbols.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define PHALANX_POISON(start, bytes) ASAN_POISON_MEMORY_REGION(start, bytes)
#define PHALANX_UNPOISON(start, bytes) ASAN_UNPOISON_MEMORY_REGION(start, bytes)
#else
#define PHALANX_POISON(start, bytes) static_cast<void>(start), static_cast<void>(bytes)
#define PHALANX_UNPOISON(start, bytes) static_cast<void>(start), static_cast<void>(bytes)
#endif

namespace phalanx::emulator {
namespace {

constexpr int kPoison = 0xff;
constexpr unsigned char kFence = 0xa5;  // behind the buffer: an overwritten fence is an error
constexpr size_t kFenceBytes = 256;

struct Buffer {
  alignas(1024) unsigned char bytes[kSharedBytesAtMost + kFenceBytes];
  size_t size = 0;
};

Buffer& buffer() {
  thread_local std::unique_ptr<Buffer> the_buffer = std::make_unique<Buffer>();
  return *the_buffer;
}

}  // namespace

void prepare_shared_memory(size_t bytes) {
  Buffer& shared = buffer();
  PHALANX_UNPOISON(shared.bytes, sizeof(shared.bytes));
  shared.size = bytes;
  std::memset(shared.bytes, kPoison, bytes);
  std::memset(shared.bytes + bytes, kFence, kFenceBytes);
  PHALANX_POISON(shared.bytes + bytes, sizeof(shared.bytes) - bytes);
  for (const auto& variable : shared_variables())
    std::memset(variable.address(), kPoison, variable.bytes);
}

void check_shared_memory() {
  Buffer& shared = buffer();
  const unsigned char* fence = shared.bytes + shared.size;
  PHALANX_UNPOISON(fence, kFenceBytes);
  const auto* hit =
      std::find_if(fence, fence + kFenceBytes, [](unsigned char byte) { return byte != kFence; });
  if (hit != fence + kFenceBytes)
    throw KernelError(
        fmt::format("a thread wrote {} bytes behind the {} bytes of dynamic shared "
                    "memory of the launch",
                    hit - fence, shared.size));
}

void* dynamic_shared_base(const Site& site) {
  if (buffer().size == 0)
    running_block(site).fail(site, "the launch gave no dynamic shared memory");
  return buffer().bytes;
}

uint32_t shared_window_address(const void* pointer, const Site& site) {
  const auto offset = static_cast<const unsigned char*>(pointer) - buffer().bytes;
  if (offset < 0 || static_cast<size_t>(offset) > buffer().size)
    running_block(site).fail(site, "the pointer is not into dynamic shared memory");
  return kSharedWindowStart + static_cast<uint32_t>(offset);
}

void* shared_window_pointer(uint32_t address, size_t bytes, const Site& site) {
  if (address < kSharedWindowStart || address - kSharedWindowStart + bytes > buffer().size)
    running_block(site).fail(
        site, fmt::format("{} bytes at {} of the shared window are outside of the {} bytes of "
                          "dynamic shared memory, which start at {}",
                          bytes, address, buffer().size, kSharedWindowStart));
  return buffer().bytes + (address - kSharedWindowStart);
}

void check_shared(const void* pointer, size_t bytes, size_t alignment, const Site& site) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignment != 0)
    running_block(site).fail(site, fmt::format("address not aligned to {} bytes", alignment));
  const auto* start = static_cast<const unsigned char*>(pointer);
  const auto inside = [&](const void* memory, size_t size) {
    const auto* first = static_cast<const unsigned char*>(memory);
    return start >= first && start + bytes <= first + size;
  };
  if (inside(buffer().bytes, buffer().size)) return;
  for (const auto& variable : shared_variables())
    if (inside(variable.address(), variable.bytes)) return;
  running_block(site).fail(
      site, fmt::format("{} bytes that are not inside of one piece of shared memory", bytes));
}

}  // namespace phalanx::emulator
