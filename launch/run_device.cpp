// Choosing the device and saying so.
#include "launch/run_device.h"

#include "kernels/base/log.h"
#include "kernels/make_backend.h"

namespace phalanx {
namespace {

std::string reason(DeviceChoice choice, int fewest_gpus) {
  if (choice != DeviceChoice::automatic) return fmt::format("--device {}", enum_name(choice));
  if (fewest_gpus > 0) return fmt::format("--device auto: {} GPU(s) on this machine", fewest_gpus);
  return num_cuda_devices() > 0 ? "--device auto: not every rank has a GPU"
                                : "--device auto: no usable GPU on this machine";
}

}  // namespace

Device chosen_device(DeviceChoice choice, int num_gpus) {
  if (choice == DeviceChoice::automatic) return num_gpus > 0 ? Device::cuda : Device::cpu;
  return choice == DeviceChoice::cuda ? Device::cuda : Device::cpu;
}

std::unique_ptr<Backend> make_run_backend(const TrainingConfig& training, const Ranks& ranks) {
  const int fewest_gpus = least_of_ranks(num_cuda_devices(), ranks);
  const Device device = chosen_device(training.device, fewest_gpus);
  const std::string why = reason(training.device, fewest_gpus);
  auto backend = make_backend(
      device, {.num_threads = static_cast<int>(training.threads), .local_rank = ranks.local_rank});
  if (ranks.rank == 0)
    log_info("device {}: {} ({})", device_name(device), backend->info().name, why);
  return backend;
}

}  // namespace phalanx
