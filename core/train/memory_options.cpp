// Options are tried one after the other on layers that compute nothing.
#include "core/train/memory_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "core/train/run_setup.h"
#include "kernels/null_backend.h"
#include "parallel/pipeline_schedule.h"

namespace phalanx {
namespace {

constexpr double kMebibyte = 1024.0 * 1024.0;
constexpr int64_t kMostFactor = 64;  // by which parallel sizes and ranks grow in the search

MemoryNeeds measure_rank(const RunConfig& config, const DeviceMesh& mesh, int64_t pp_rank,
                         Device device) {
  const int64_t num_stages = mesh.size(MeshAxis::pp);
  NullBackend backend(device);
  ProcessGroups groups =
      make_measuring_process_groups(mesh, pp_rank * (mesh.world_size() / num_stages));
  ParameterStore store;
  PhdStage stage(config.model, store, backend, groups,
                 stage_options(config.model, config.parallel, config.data.seq_length, pp_rank));
  const auto schedule = make_schedule(config.parallel.pipeline_schedule,
                                      {.stage = pp_rank,
                                       .num_stages = num_stages,
                                       .num_chunks = stage.num_chunks(),
                                       .num_micro_batches = num_micro_batches(config, mesh)});
  return memory_needs(stage, {.store = store,
                              .groups = groups,
                              .parallel = config.parallel,
                              .shape = {.positions = config.data.seq_length,
                                        .sequences = config.training.micro_batch_size},
                              .dtype = compute_dtype(config.training.precision),
                              .saves = config.checkpoint.save_interval > 0,
                              .slots = slots_of(schedule, stage.num_chunks()),
                              .device = device});
}

/// A run that differs from the user's by some options.
struct Candidate {
  RunConfig config;
  int64_t world_size;
  std::string options;  // "--recompute layer"
};

/// Changes one option and returns it as it is written; "" where there is nothing to change.
using Change = std::string (*)(RunConfig&);

std::string recompute(RunConfig& config, Recompute wanted) {
  const std::string word(enum_name(wanted));
  auto& words = config.parallel.recompute;
  const bool more = words.empty() || std::ranges::any_of(words, [&](const std::string& now) {
                      return parse_enum<Recompute>(now) < wanted;
                    });
  if (!more) return {};
  words = {word};
  return "--recompute " + word;
}

std::string half_micro_batch(RunConfig& config) {
  int64_t& size = config.training.micro_batch_size;
  if (size == 1) return {};
  size = (size + 1) / 2;
  return fmt::format("--micro-batch-size {}", size);
}

std::string sequence_parallel(RunConfig& config) {
  ParallelConfig& parallel = config.parallel;
  if (parallel.sequence_parallel || parallel.tensor_model_parallel_size == 1) return {};
  parallel.sequence_parallel = true;
  return "--sequence-parallel";
}

std::string shard_parameters(RunConfig& config) {
  auto& sharding = config.parallel.data_parallel_sharding_strategy;
  if (sharding == DataParallelSharding::optim_grads_params) return {};
  sharding = DataParallelSharding::optim_grads_params;
  return "--data-parallel-sharding-strategy optim_grads_params";
}

template <int64_t ParallelConfig::*size>
std::string twice(RunConfig& config, const char* option) {
  config.parallel.*size *= 2;
  return fmt::format("--{} {}", option, config.parallel.*size);
}
std::string twice_tensor(RunConfig& config) {
  return twice<&ParallelConfig::tensor_model_parallel_size>(config, "tensor-model-parallel-size");
}
std::string twice_pipeline(RunConfig& config) {
  return twice<&ParallelConfig::pipeline_model_parallel_size>(config,
                                                              "pipeline-model-parallel-size");
}
std::string twice_context(RunConfig& config) {
  return twice<&ParallelConfig::context_parallel_size>(config, "context-parallel-size");
}
std::string twice_experts(RunConfig& config) {
  if (config.model.num_experts == 0) return {};
  return twice<&ParallelConfig::expert_model_parallel_size>(config, "expert-model-parallel-size");
}
std::string half_precision(RunConfig& config) {
  if (config.training.precision == ComputePrecision::bf16) return {};
  config.training.precision = ComputePrecision::bf16;
  return "--precision bf16";
}

/// What changes no number first.
constexpr Change kChanges[] = {
    [](RunConfig& config) { return recompute(config, Recompute::attention); },
    [](RunConfig& config) { return recompute(config, Recompute::layer); },
    half_micro_batch,
    sequence_parallel,
    shard_parameters,
    twice_context,
    twice_tensor,
    twice_experts,
    twice_pipeline,
    half_precision,
};

class Search {
 public:
  Search(const RunConfig& config, int64_t world_size, Device device, const MemoryRoom& room)
      : start_{config, world_size, ""}, device_(device), room_(room) {}

  std::string run() {
    for (const Change change : kChanges) try_alone(change);
    if (found_.empty()) try_together(start_.world_size);
    if (found_.empty()) try_more_ranks();
    if (found_.empty())
      return fmt::format(
          "No options were found that fit into {} MiB per rank{}: use a smaller model or shorter "
          "sequences (--seq-length), or many more ranks",
          room_.device >> 20, least_text());
    return fmt::format("Measured to fit into {} MiB per rank: {}", room_.device >> 20,
                       fmt::join(found_, "; or "));
  }

 private:
  static bool is_legal(const Candidate& candidate) {
    return validate(candidate.config, candidate.world_size).empty();
  }

  /// Changes one option; false if there is nothing to change.
  static bool change_option(Change change, Candidate& candidate) {
    const std::string option = change(candidate.config);
    if (option.empty()) return false;
    // The last value of an option is the one that counts.
    std::string& options = candidate.options;
    const auto before = options.find(option.substr(0, option.find(' ')));
    if (before != std::string::npos) {
      const auto next = options.find(" --", before);
      options.erase(before, next == std::string::npos ? next : next + 1 - before);
      while (options.ends_with(' ')) options.pop_back();
    }
    options += (options.empty() ? "" : " ") + option;
    return true;
  }

  /// The same; false also if that makes no legal run, which leaves the candidate as it was.
  static bool apply(Change change, Candidate& candidate) {
    Candidate next = candidate;
    if (!change_option(change, next) || !is_legal(next)) return false;
    candidate = std::move(next);
    return true;
  }

  std::string label(const Candidate& candidate) const {
    if (candidate.world_size == start_.world_size) return candidate.options;
    return fmt::format("{} ranks{}{}", candidate.world_size,
                       candidate.options.empty() ? "" : " with ", candidate.options);
  }

  bool fits(const Candidate& candidate) {
    const MemoryNeeds needs = measure_memory(candidate.config, candidate.world_size, device_).first;
    if (least_.empty() || needs.on_device() < least_bytes_) {
      least_ = label(candidate);
      least_bytes_ = needs.on_device();
    }
    if (needs.on_device() > room_.device || needs.on_host() > room_.host) return false;
    found_.push_back(fmt::format("{} ({:.1f} MiB)", label(candidate),
                                 static_cast<double>(needs.on_device()) / kMebibyte));
    return true;
  }

  // A change of a size goes on until it fits.
  void try_alone(Change change) {
    Candidate candidate = start_;
    for (int64_t factor = 2; factor <= kMostFactor; factor *= 2)
      if (!apply(change, candidate) || fits(candidate)) return;
  }

  // One after the other, each as far as it goes, until it fits.
  bool try_together(int64_t world_size) {
    Candidate candidate = start_;
    candidate.world_size = world_size;
    // The global batch may be too small for as many more ranks.
    while (!is_legal(candidate))
      if (!change_option(half_micro_batch, candidate)) return false;
    if (world_size != start_.world_size && fits(candidate)) return true;
    for (const Change change : kChanges)
      for (int64_t factor = 2; factor <= kMostFactor && apply(change, candidate); factor *= 2)
        if (fits(candidate)) return true;
    return false;
  }

  // Again with two, four, ... times as many ranks.
  void try_more_ranks() {
    for (int64_t factor = 2; factor <= kMostFactor; factor *= 2)
      if (try_together(start_.world_size * factor)) return;
  }

  std::string least_text() const {
    if (least_.empty()) return {};
    return fmt::format(" (the least, with {}: {} MiB)", least_, least_bytes_ >> 20);
  }

  Candidate start_;
  Device device_;
  MemoryRoom room_;
  std::vector<std::string> found_;
  std::string least_;  // options of the least that was measured
  int64_t least_bytes_ = 0;
};

}  // namespace

int64_t num_micro_batches(const RunConfig& config, const DeviceMesh& mesh) {
  const int64_t step = config.training.micro_batch_size * mesh.size(MeshAxis::dp);
  return std::max(config.training.global_batch_size / step, mesh.size(MeshAxis::pp));
}

std::pair<MemoryNeeds, int64_t> measure_memory(const RunConfig& config, int64_t world_size,
                                               Device device) {
  const DeviceMesh mesh(config.parallel, world_size);
  std::pair<MemoryNeeds, int64_t> most{measure_rank(config, mesh, 0, device), 0};
  for (int64_t rank = 1; rank < mesh.size(MeshAxis::pp); ++rank) {
    const MemoryNeeds needs = measure_rank(config, mesh, rank, device);
    if (needs.on_device() > most.first.on_device()) most = {needs, rank};
  }
  return most;
}

std::string options_that_fit(const RunConfig& config, int64_t world_size, Device device,
                             const MemoryRoom& room) {
  return Search(config, world_size, device, room).run();
}

}  // namespace phalanx
