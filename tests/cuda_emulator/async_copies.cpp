// cp.async.
#include "tests/cuda_emulator/async_copies.h"

#include <cstring>
#include <utility>

#include "tests/cuda_emulator/shared_memory.h"

namespace phalanx::emulator {
namespace {
constexpr size_t kBytes = 16;
}

AsyncCopies& async_copies() {
  const Site site{"an asynchronous copy", std::source_location::current()};
  auto& copies = running_block(site).self().async_copies;
  if (copies == nullptr) copies = std::make_shared<AsyncCopies>();
  return *copies;
}

void AsyncCopies::start(void* shared, const void* global, bool valid, const Site& site) {
  check_shared(shared, kBytes, kBytes, site);
  if (valid && reinterpret_cast<uintptr_t>(global) % kBytes != 0)
    running_block(site).fail(site, "global address not aligned to 16 bytes");
  std::memset(shared, 0xff, kBytes);
  open_.push_back({shared, valid ? global : nullptr});
}

void AsyncCopies::commit() {
  groups_.push_back(std::exchange(open_, {}));
}

void AsyncCopies::wait(int pending) {
  for (; groups_.size() > static_cast<size_t>(pending); groups_.pop_front())
    for (const Copy& copy : groups_.front()) {
      if (copy.source == nullptr) {
        std::memset(copy.target, 0, kBytes);
      } else {
        std::memcpy(copy.target, copy.source, kBytes);
      }
    }
}

}  // namespace phalanx::emulator
