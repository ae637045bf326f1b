// Builds a stage and fills it from a weights file.
#include "core/train/loaded_model.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "core/train/memory_needs.h"
#include "core/train/weights_file.h"
#include "data/file_io.h"

namespace phalanx {
namespace {

/// Copies, window, RoPE base and masks never change a tensor's shape, so only the configuration
/// kept inside the weights file can tell that config.ini is another run's.
void check_same_run(const std::string& load_dir, const std::string& config_of_weights) {
  const std::string path = load_dir + "/config.ini";
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  check_usage(text == config_of_weights, path, " is not the configuration that ",
              weights_path(load_dir),
              " was trained with (a later run in this folder, or an edit); restore it from the "
              "file's attribute \"config\" and change values by options instead");
}

}  // namespace

LoadedModel::LoadedModel(const RunSetup& setup, const std::string& load_dir, Backend& backend,
                         ProcessGroups& groups, const StageShape& shape)
    : stage_(setup.config.model, store_, backend, groups,
             stage_options(setup.config.model, setup.config.parallel, setup.config.data.seq_length,
                           groups.pp->rank())) {
  const DType dtype = compute_dtype(setup.config.training.precision);
  const std::string path = weights_path(load_dir);
  check_usage(file_exists(path), "there is no file ", path,
              "; a run writes it at its end. From a checkpoint: phalanx checkpoint export-h5 ",
              load_dir, " ", path);
  const StageSlots slots{.per_chunk =
                             std::vector<int64_t>(static_cast<size_t>(stage_.num_chunks()), 1)};
  reserve(backend, shape, dtype, slots);
  store_.allocate(backend, dtype);
  const WeightsInfo info =
      load_weights(path, setup.vocabulary.tokenizer_hash, store_, backend, *groups.world);
  check_same_run(load_dir, info.config_ini);
  stage_.allocate(shape, dtype, slots);
}

// Without optimizer; the staging of `load_weights` is given back before activations are taken.
void LoadedModel::reserve(Backend& backend, const StageShape& shape, DType dtype,
                          const StageSlots& slots) {
  const PhdStage::MemoryPlan plan = stage_.plan_memory(shape, dtype, slots);
  int64_t activations =
      plan.scratch_bytes + plan.recomputed_bytes + plan.fixed_bytes + plan.batch_bytes;
  for (const int64_t bytes : plan.saved_bytes_per_slot) activations += bytes;
  int64_t largest = 0;
  for (int64_t i = 0; i < store_.size(); ++i) largest = std::max(largest, store_[i].numel());
  const int64_t weights =
      store_.numel() * (dtype_bytes(dtype) + dtype_bytes(accumulator_dtype(dtype)));
  const int64_t staging = largest * dtype_bytes(DType::f64);
  const int64_t bytes =
      weights + std::max(activations, staging) + workspace_bytes(backend.device()) + kRoundingBytes;
  const int64_t free = backend.info().free_bytes;
  check_usage(free < 0 || bytes <= free, "the model needs ", bytes >> 20, " MiB of GPU memory and ",
              free >> 20,
              " MiB are free; use a smaller --micro-batch-size or --seq-length, more ranks, or "
              "--device cpu");
  backend.reserve(bytes);
}

}  // namespace phalanx
