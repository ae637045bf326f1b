// Gathers, writes and reads whole tensors.
#include "core/train/weights_file.h"

#include <algorithm>
#include <optional>
#include <set>

#include "data/hdf5_file.h"

namespace phalanx {
namespace {

constexpr char kFormat[] = "phalanx weights";

/// Device memory for one parameter at a time, large enough for the largest.
class Staging {
 public:
  Staging(const ParameterStore& store, Backend& backend) : backend_(backend) {
    int64_t largest = 0;
    for (int64_t i = 0; i < store.size(); ++i) largest = std::max(largest, store[i].numel());
    block_ = backend.allocate(largest * dtype_bytes(DType::f64));
  }
  Tensor tensor(const Shape& shape, DType dtype) const {
    return {block_.get(), shape, dtype, backend_.device()};
  }

 private:
  Backend& backend_;
  std::shared_ptr<void> block_;
};

/// The parameter at full precision on every rank. In bf16 each rank puts its shards into zeros, and
/// the sum over ranks, exact because one of the terms is not zero, is the whole.
Tensor gather_master(const Parameter& parameter, const WeightsSource& source,
                     const std::vector<OptimizerShard>& shards, const Staging& staging) {
  if (parameter.value.dtype != DType::bf16) return parameter.value;
  const Tensor whole = staging.tensor(parameter.shape, DType::f32);
  source.backend.zero(whole);
  for (const OptimizerShard& shard : shards) {
    if (shard.parameter != &parameter) continue;
    const int64_t columns = shard.master.shape.back();
    const Tensor rows =
        whole.view({parameter.numel() / columns, columns}).slice(shard.row_begin, shard.row_end);
    source.backend.copy(rows, shard.master);
  }
  source.backend.synchronize();
  source.groups.dp_cp->all_reduce(whole, ReduceOp::sum);
  return whole;
}

void write_info(Hdf5File& file, const WeightsInfo& info) {
  file.set_attribute("/", "format", kFormat);
  file.set_attribute("/", "config", info.config_ini);
  file.set_attribute("/", "step", std::to_string(info.step));
  file.set_attribute("/", "consumed_samples", std::to_string(info.consumed_samples));
  file.set_attribute("/", "tokenizer_hash", info.tokenizer_hash);
}

WeightsInfo read_info(const Hdf5File& file, const std::string& path) {
  check_usage(file.has_attribute("/", "format") && file.attribute("/", "format") == kFormat, path,
              " is an HDF5 file but not weights of this program");
  return {.config_ini = file.attribute("/", "config"),
          .step = std::stoll(file.attribute("/", "step")),
          .consumed_samples = std::stoll(file.attribute("/", "consumed_samples")),
          .tokenizer_hash = file.attribute("/", "tokenizer_hash")};
}

void write_tensor(Hdf5File& file, const Parameter& parameter, const Tensor& device,
                  Backend& backend, std::vector<uint8_t>& host) {
  host.resize(static_cast<size_t>(device.bytes()));
  backend.download(host.data(), device);
  Tensor tensor = device;
  tensor.data = host.data();
  tensor.device = Device::cpu;
  file.create_dataset(parameter.spec.name, parameter.spec.global_shape, tensor.dtype);
  file.write(parameter.spec.name, tensor);
}

/// Everything by which `file` is not the weights of `store`, one line each; empty if it is.
std::string find_differences(const Hdf5File& file, const ParameterStore& store) {
  const std::vector<std::string> list = file.datasets();
  std::set<std::string> unexpected(list.begin(), list.end());
  std::string problems;
  for (int64_t i = 0; i < store.size(); ++i) {
    const ParameterSpec& spec = store[i].spec;
    if (unexpected.erase(spec.name) == 0) {
      problems += fmt::format("\n  missing: {} {}", spec.name, spec.global_shape.to_string());
      continue;
    }
    const Shape shape = file.shape(spec.name);
    const DType dtype = file.dtype(spec.name);
    if (!(shape == spec.global_shape) || (dtype != DType::f32 && dtype != DType::f64))
      problems += fmt::format("\n  {} is {} {}, expected {} f32 or f64", spec.name,
                              shape.to_string(), dtype_name(dtype), spec.global_shape.to_string());
  }
  for (const std::string& name : unexpected) problems += "\n  unexpected: " + name;
  return problems;
}

}  // namespace

void save_weights(const std::string& path, const WeightsInfo& info, const WeightsSource& source) {
  check(source.groups.tp->size() == 1 && source.groups.pp->size() == 1,
        "whole weights can only be written without tensor and pipeline parallelism, here tp ",
        source.groups.tp->size(), ", pp ", source.groups.pp->size());
  const Staging staging(source.store, source.backend);
  const std::vector<OptimizerShard> shards = source.optimizer.shards();
  std::optional<Hdf5File> file;
  if (source.groups.world->rank() == 0) {
    file.emplace(Hdf5File::create(path));
    write_info(*file, info);
  }
  std::vector<uint8_t> host;
  for (int64_t i = 0; i < source.store.size(); ++i) {
    const Parameter& parameter = source.store[i];
    const Tensor whole = gather_master(parameter, source, shards, staging);
    if (file) write_tensor(*file, parameter, whole, source.backend, host);
  }
  if (file) file->publish();
  source.groups.world->barrier();  // nobody reports success before the file is there
}

WeightsInfo load_weights(const std::string& path, const std::string& tokenizer_hash,
                         ParameterStore& store, Backend& backend) {
  const Hdf5File file = Hdf5File::open(path);
  WeightsInfo info = read_info(file, path);
  check_usage(tokenizer_hash.empty() || info.tokenizer_hash == tokenizer_hash, path,
              " was trained with another tokenizer (hash ", info.tokenizer_hash, ", here ",
              tokenizer_hash, "); give the tokenizer options of that run");
  const std::string problems = find_differences(file, store);
  check_usage(problems.empty(), path, " does not fit the model:", problems,
              "\nUse the model options of the run that wrote it");
  const Staging staging(store, backend);
  std::vector<uint8_t> host;
  for (int64_t i = 0; i < store.size(); ++i) {
    Parameter& parameter = store[i];
    const Tensor device = staging.tensor(parameter.shape, file.dtype(parameter.spec.name));
    host.resize(static_cast<size_t>(device.bytes()));
    Tensor tensor = device;
    tensor.data = host.data();
    tensor.device = Device::cpu;
    file.read(parameter.spec.name, tensor);
    backend.upload(device, host.data());
    backend.copy(parameter.value, device);
  }
  return info;
}

}  // namespace phalanx
