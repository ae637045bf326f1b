// Sums over the ranks that share a memory.
#include "core/train/memory_check.h"

#include <fmt/format.h>

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

#include "kernels/base/philox.h"

namespace phalanx {
namespace {

constexpr double kMebibyte = 1024.0 * 1024.0;
constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max() / 2;

int64_t available_host_memory() {
  std::stringstream text;
  text << std::ifstream("/proc/meminfo").rdbuf();
  const int64_t bytes = parse_available_memory(text.str());
  return bytes < 0 ? kUnknown : bytes;
}

std::string machine_name() {
  char name[256] = "localhost";
  gethostname(name, sizeof(name) - 1);
  return name;
}

/// One memory, as this rank sees it.
struct SharedMemory {
  int64_t needed = 0;     // by all ranks that share it
  int64_t available = 0;  // the least that any of them sees
  int64_t ranks = 1;
  int64_t lacking() const { return std::max<int64_t>(0, needed - available); }
};

/// Collective: ranks with the same `key` share the memory.
SharedMemory shared_memory(const std::string& key, int64_t needed, int64_t available,
                           ProcessGroup& world) {
  if (world.size() == 1) return {needed, available, 1};
  const int64_t own[] = {static_cast<int64_t>(hash_name(key) >> 1), needed, available};
  std::vector<int64_t> all(3 * static_cast<size_t>(world.size()));
  world.all_gather(cpu_tensor(all.data(), {3 * world.size()}), cpu_tensor(own, {3}));
  SharedMemory memory{0, kUnknown, 0};
  for (size_t i = 0; i < all.size(); i += 3) {
    if (all[i] != own[0]) continue;
    memory.needed += all[i + 1];
    memory.available = std::min(memory.available, all[i + 2]);
    ++memory.ranks;
  }
  return memory;
}

std::string lack_text(const char* place, const SharedMemory& memory, int64_t worst) {
  return fmt::format(
             "\nThe ranks of one {} lack {} MiB (this one: {} MiB needed by {} rank(s), {} MiB "
             "available). ",
             place, static_cast<int64_t>(static_cast<double>(worst) / kMebibyte) + 1,
             memory.needed / (1 << 20), memory.ranks, memory.available / (1 << 20)) +
         (memory.ranks > 1 ? "Fewer ranks on it have more room each. " : "");
}

}  // namespace

int64_t parse_available_memory(const std::string& meminfo) {
  std::istringstream lines(meminfo);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string key;
    int64_t kibibytes = 0;
    if (words >> key >> kibibytes && key == "MemAvailable:") return kibibytes * 1024;
  }
  return -1;
}

void check_memory(const MemoryNeeds& needs, const DeviceInfo& device, ProcessGroup& world,
                  const std::function<std::string(const MemoryRoom&)>& advice) {
  const bool on_host = needs.device == Device::cpu;
  const SharedMemory host =
      shared_memory(machine_name(), on_host ? needs.on_device() : needs.on_host(),
                    available_host_memory(), world);
  const SharedMemory own = on_host ? host
                                   : shared_memory(machine_name() + device.memory_key,
                                                   needs.on_device(), device.free_bytes, world);
  const int64_t worst_host = world.all_reduce(host.lacking(), ReduceOp::max);
  const int64_t worst = world.all_reduce(own.lacking(), ReduceOp::max);
  if (worst_host == 0 && worst == 0) return;
  const auto least = [&](const SharedMemory& memory) {
    return -world.all_reduce(-(memory.available / memory.ranks), ReduceOp::max);
  };
  const MemoryRoom room{.device = least(own), .host = least(host)};
  std::string text = memory_table(needs);
  if (!on_host && worst > 0) text += lack_text("GPU", own, worst);
  if (worst_host > 0) text += lack_text("machine", host, worst_host);
  throw UsageError(text + advice(room));
}

}  // namespace phalanx
