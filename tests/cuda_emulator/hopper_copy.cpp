// Copies by TMA.
#include "tests/cuda_emulator/hopper_copy.h"

#include <fmt/format.h>

#include <cstring>

#include "tests/cuda_emulator/hopper_block.h"
#include "tests/cuda_emulator/hopper_tensor_map.h"
#include "tests/cuda_emulator/memory.h"
#include "tests/cuda_emulator/shared_memory.h"

namespace phalanx::emulator {
namespace {

struct TensorLoad {
  TensorMapFields fields;
  std::array<int32_t, kMaxTensorRank> start{};
  unsigned char* target = nullptr;
  uint32_t address = 0;
  Mbarrier* barrier = nullptr;
  Site site;
};

void finish(const TensorLoad& load) {
  HopperBlock& block = hopper_block();
  copy_box(load.fields, load.start, load.target, load.address);
  block.proxy.wrote(load.address, load.target, load.fields.box_bytes());
  --block.copies_under_way;
  const std::string error = load.barrier->complete(load.fields.box_bytes());
  if (!error.empty()) throw KernelError(load.site.text() + ": " + error);
}

void check_load(const TensorLoad& load, size_t num_coordinates) {
  Scheduler& block = running_block(load.site);
  if (num_coordinates != load.fields.rank)
    block.fail(load.site, fmt::format("{} coordinates for a tensor of rank {}", num_coordinates,
                                      load.fields.rank));
  if (const auto error = copy_error(load.fields, load.address); !error.empty())
    block.fail(load.site, error);
  if (!load.barrier->is_visible_to_async_proxy())
    block.fail(load.site, "the thread that initialised the barrier has not fenced since");
  const auto [first, end] = touched_range(load.fields, load.start);
  if (first != nullptr && !is_device_range(first, static_cast<size_t>(end - first)))
    block.fail(load.site, "the box is not inside of one allocation on the device");
}

}  // namespace

void check_tensor_map(const CUtensorMap& map, const Site& site) {
  if (fields_of(map) == nullptr)
    running_block(site).fail(site, "not a tensor map of cuTensorMapEncodeTiled");
}

void start_tensor_load(void* shared, const CUtensorMap& map, std::span<const int32_t> coordinates,
                       uint64_t* barrier, const Site& site) {
  check_tensor_map(map, site);
  TensorLoad load{.fields = *fields_of(map),
                  .target = static_cast<unsigned char*>(shared),
                  .address = shared_window_address(shared, site),
                  .barrier = &find_barrier(barrier, site),
                  .site = site};
  const uint32_t bytes = load.fields.box_bytes();
  check_shared(shared, bytes, 1, site);
  std::copy_n(coordinates.begin(), std::min<size_t>(coordinates.size(), kMaxTensorRank),
              load.start.begin());
  check_load(load, coordinates.size());
  constexpr int kPoison = 0xff;
  std::memset(shared, kPoison, bytes);
  ++hopper_block().copies_under_way;
  running_block(site).later([load] { finish(load); });
}

}  // namespace phalanx::emulator
