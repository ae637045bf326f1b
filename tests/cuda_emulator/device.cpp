// Devices and errors. The emulated devices look like H100s to a program that asks.
#include <fmt/format.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>

#include "tests/cuda_emulator/counters.h"
#include "tests/cuda_emulator/driver_entry.h"
#include "tests/cuda_emulator/runtime_state.h"
#include "tests/cuda_emulator/shared_memory.h"

namespace phalanx::emulator {
namespace {

constexpr int kMultiprocessors = 132;
constexpr int kVersion = 13000;

thread_local int the_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local int range_depth = 0;

std::atomic<cudaError_t> broken{cudaSuccess};
std::mutex broken_mutex;
std::atomic<const char*> broken_text{""};

int num_devices() {
  static const int count = [] {
    const char* text = std::getenv("EMULATED_GPUS");
    return text != nullptr ? std::atoi(text) : 1;
  }();
  return count;
}

/// Tens: major, units: minor.
int compute_capability() {
  static const int number = [] {
    const char* text = std::getenv("EMULATED_COMPUTE_CAPABILITY");
    return text != nullptr ? std::atoi(text) : 90;
  }();
  return number;
}

struct EntryPoints {
  std::mutex mutex;
  std::map<std::string, void*> by_name;
};
EntryPoints& entry_points() {
  static auto* all = new EntryPoints;
  return *all;
}

}  // namespace

int current_device() {
  return the_device;
}
cudaError_t device_error() {
  return broken;
}
const char* device_error_text() {
  return broken_text;
}

void break_device(cudaError_t code, const std::string& text) {
  const std::lock_guard lock(broken_mutex);
  std::fprintf(stderr, "CUDA emulator: %s\n", text.c_str());
  if (broken != cudaSuccess) return;
  static auto* texts = new std::deque<std::string>;  // programs hold on to texts of errors
  broken_text = texts->emplace_back(text).c_str();
  broken = code;
}

cudaError_t note(cudaError_t code) {
  if (code != cudaSuccess && code != cudaErrorNotReady) last_error = code;
  return code;
}

bool register_driver_entry(const char* name, void* function) {
  const std::lock_guard lock(entry_points().mutex);
  return entry_points().by_name.emplace(name, function).second;
}

void Counters::reset() {
  for (auto* counter :
       {&kernel_launches, &graph_launches, &stream_synchronisations, &device_synchronisations,
        &event_synchronisations, &device_allocations, &pinned_allocations, &bytes_to_device,
        &bytes_to_host, &bytes_on_device, &matrix_products, &ranges})
    *counter = 0;
}

Counters& counters() {
  static Counters all;
  return all;
}

int push_range(const char*) {
  ++counters().ranges;
  return range_depth++;
}

int pop_range() {
  return range_depth > 0 ? --range_depth : -1;
}

}  // namespace phalanx::emulator

using namespace phalanx::emulator;  // NOLINT: the API below is C

cudaError_t cudaGetDeviceCount(int* count) {
  *count = num_devices();
  return note(num_devices() > 0 ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= num_devices()) return note(cudaErrorInvalidDevice);
  the_device = device;
  return note(device_error());
}

cudaError_t cudaGetDevice(int* device) {
  *device = the_device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* prop, int device) {
  if (device < 0 || device >= num_devices()) return note(cudaErrorInvalidDevice);
  *prop = {};
  std::snprintf(prop->name, sizeof(prop->name), "Emulated GPU");
  size_t free = 0;
  static_cast<void>(cudaMemGetInfo(&free, &prop->totalGlobalMem));
  const auto value = [device](cudaDeviceAttr attribute) {
    int number = 0;
    static_cast<void>(cudaDeviceGetAttribute(&number, attribute, device));
    return number;
  };
  prop->uuid.bytes[0] = static_cast<char>(device + 1);
  prop->sharedMemPerBlock = kSharedBytesByDefault;
  prop->sharedMemPerBlockOptin = kSharedBytesAtMost;
  prop->sharedMemPerMultiprocessor =
      static_cast<size_t>(value(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  prop->regsPerBlock = value(cudaDevAttrMaxRegistersPerBlock);
  prop->warpSize = value(cudaDevAttrWarpSize);
  prop->maxThreadsPerBlock = value(cudaDevAttrMaxThreadsPerBlock);
  prop->maxThreadsPerMultiProcessor = value(cudaDevAttrMaxThreadsPerMultiProcessor);
  prop->major = value(cudaDevAttrComputeCapabilityMajor);
  prop->minor = value(cudaDevAttrComputeCapabilityMinor);
  prop->multiProcessorCount = value(cudaDevAttrMultiProcessorCount);
  prop->memoryBusWidth = value(cudaDevAttrGlobalMemoryBusWidth);
  prop->l2CacheSize = value(cudaDevAttrL2CacheSize);
  prop->pciBusID = device + 1;
  prop->asyncEngineCount = 3;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attr, int device) {
  if (device < 0 || device >= num_devices()) return note(cudaErrorInvalidDevice);
  static const std::map<cudaDeviceAttr, int> values = {
      {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrMaxGridDimX, 0x7fffffff},
      {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535},
      {cudaDevAttrMaxSharedMemoryPerBlock, static_cast<int>(kSharedBytesByDefault)},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxRegistersPerBlock, 65536},
      {cudaDevAttrClockRate, 1980000},
      {cudaDevAttrMultiProcessorCount, kMultiprocessors},
      {cudaDevAttrMemoryClockRate, 2619000},
      {cudaDevAttrGlobalMemoryBusWidth, 5120},
      {cudaDevAttrL2CacheSize, 50 << 20},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
      {cudaDevAttrComputeCapabilityMajor, compute_capability() / 10},
      {cudaDevAttrComputeCapabilityMinor, compute_capability() % 10},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 << 10},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, static_cast<int>(kSharedBytesAtMost)}};
  const auto found = values.find(attr);
  if (found == values.end()) return note(cudaErrorInvalidValue);
  *value = found->second;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* pciBusId, int len, int device) {
  if (device < 0 || device >= num_devices()) return note(cudaErrorInvalidDevice);
  const int written =
      std::snprintf(pciBusId, static_cast<size_t>(len), "0000:%02x:00.0", device + 1);
  return note(written < len ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* leastPriority, int* greatestPriority) {
  *leastPriority = 0;
  *greatestPriority = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* canAccessPeer, int device, int peerDevice) {
  *canAccessPeer = device != peerDevice ? 1 : 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  if (capture_forbids()) return note(cudaErrorStreamCaptureUnsupported);
  ++counters().device_synchronisations;
  wait_for_device();
  return note(device_error());
}

/// Only repairs the device after a broken kernel; streams and memory stay.
cudaError_t cudaDeviceReset() {
  wait_for_device();
  broken = cudaSuccess;
  broken_text = "";
  last_error = cudaSuccess;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* driverVersion) {
  *driverVersion = kVersion;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* runtimeVersion) {
  *runtimeVersion = kVersion;
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** funcPtr,
                                             unsigned int cudaVersion, unsigned long long,
                                             enum cudaDriverEntryPointQueryResult* driverStatus) {
  const std::lock_guard lock(entry_points().mutex);
  const auto found = entry_points().by_name.find(symbol);
  const bool known = found != entry_points().by_name.end();
  const bool recent = cudaVersion >= 12000 && cudaVersion <= kVersion;
  *funcPtr = known && recent ? found->second : nullptr;
  if (driverStatus != nullptr)
    *driverStatus = !known    ? cudaDriverEntryPointSymbolNotFound
                    : !recent ? cudaDriverEntryPointVersionNotSufficent
                              : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() {
  return device_error() != cudaSuccess ? device_error() : last_error;
}
