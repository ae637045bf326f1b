// Adds up what a run will take and compares it with what the machine has.
#include "core/train/memory_needs.h"

#include <fmt/format.h>

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <sstream>

#include "kernels/base/philox.h"

namespace phalanx {
namespace {

constexpr double kMebibyte = 1024.0 * 1024.0;

int64_t available_memory() {
  std::stringstream text;
  text << std::ifstream("/proc/meminfo").rdbuf();
  return parse_available_memory(text.str());
}

int64_t machine_key() {
  char name[256] = "localhost";
  gethostname(name, sizeof(name) - 1);
  return static_cast<int64_t>(hash_name(name) >> 1);
}

/// What all ranks on this rank's machine need together.
int64_t needs_of_machine(int64_t own, ProcessGroup& world) {
  const auto size = static_cast<size_t>(world.size());
  std::vector<int64_t> all(2 * size);
  std::vector<int64_t> mine{machine_key(), own};
  if (world.size() == 1) return own;
  world.all_gather(cpu_tensor(all.data(), {2 * world.size()}), cpu_tensor(mine.data(), {2}));
  int64_t sum = 0;
  for (size_t rank = 0; rank < size; ++rank)
    if (all[2 * rank] == mine[0]) sum += all[2 * rank + 1];
  return sum;
}

}  // namespace

GradientBuffer::Options gradient_options(const PhdStage& stage, const ParallelConfig& parallel) {
  const bool sharded =
      parallel.data_parallel_sharding_strategy == DataParallelSharding::optim_grads_params;
  return {.bucket_size = parallel.ddp_bucket_size,
          .overlap = parallel.overlap_grad_reduce,
          .units = sharded ? stage.units() : std::vector<ParameterRange>{}};
}

MemoryNeeds memory_needs(PhdStage& stage, const MemoryQuestion& question) {
  MemoryNeeds needs;
  const int64_t compute_bytes = dtype_bytes(question.dtype);
  const int64_t master_bytes = dtype_bytes(accumulator_dtype(question.dtype));
  const GradientBuffer::Options options = gradient_options(stage, question.parallel);
  int64_t shard = 0;
  int64_t shard_of_units = 0;
  int64_t resident = question.store.numel();
  for (const Bucket& bucket : make_buckets(
           question.store, bucket_rules(question.groups, options.bucket_size, options.units))) {
    const int rank = group_of(bucket, question.groups).rank();
    const int64_t own = bucket.counts[static_cast<size_t>(rank)];
    shard += own;
    if (bucket.unit < 0) continue;
    shard_of_units += own;
    resident -= bucket.numel();
  }
  // Units: the shard, and two of the largest whole.
  const int64_t held =
      resident + shard_of_units + 2 * ShardedUnits::largest_unit(question.store, options.units);
  needs.weights = held * compute_bytes;
  needs.gradients = held * master_bytes;
  // Two moments; and a master where the compute weights are not their own masters.
  needs.optimizer = shard * master_bytes * (question.dtype == DType::bf16 ? 3 : 2);
  if (question.saves) needs.snapshot = 3 * shard * master_bytes;
  const PhdStage::MemoryPlan plan =
      stage.plan_memory(question.shape, question.dtype, question.slots);
  needs.num_slots = 0;
  for (size_t chunk = 0; chunk < plan.saved_bytes_per_slot.size(); ++chunk) {
    needs.num_slots += question.slots.per_chunk[chunk];
    needs.activations += plan.saved_bytes_per_slot[chunk] * question.slots.per_chunk[chunk];
  }
  needs.scratch = plan.scratch_bytes + plan.recomputed_bytes + plan.fixed_bytes;
  needs.largest = plan.largest;
  return needs;
}

std::string memory_table(const MemoryNeeds& needs) {
  std::string table = " memory of the rank (MiB)\n";
  const auto row = [&](const std::string& name, int64_t bytes) {
    table += fmt::format("   {:<44}{:>12.1f}\n", name, static_cast<double>(bytes) / kMebibyte);
  };
  row("weights", needs.weights);
  row("gradients", needs.gradients);
  row("optimizer state (this rank's shard)", needs.optimizer);
  row(fmt::format("activations ({} micro-batch(es) in flight)", needs.num_slots),
      needs.activations);
  for (size_t i = 0; i < std::min<size_t>(3, needs.largest.size()); ++i)
    row("  of which " + needs.largest[i].first, needs.largest[i].second);
  row("scratch and tables", needs.scratch);
  if (needs.snapshot > 0) row("copy for checkpoints (at most)", needs.snapshot);
  row("total", needs.total());
  table.pop_back();
  return table;
}

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

void check_memory(const MemoryNeeds& needs, ProcessGroup& world) {
  const int64_t wanted = needs_of_machine(needs.total(), world);
  const int64_t available = available_memory();
  const int64_t lacking = available < 0 ? 0 : std::max<int64_t>(0, wanted - available);
  const int64_t worst = world.all_reduce(lacking, ReduceOp::max);
  check_usage(worst == 0, memory_table(needs), "\nThe ranks of one machine lack ",
              static_cast<int64_t>(static_cast<double>(worst) / kMebibyte) + 1,
              " MiB (this one: ", wanted / (1 << 20), " MiB needed, ", available / (1 << 20),
              " MiB available). Lower --micro-batch-size (activations), --seq-length, "
              "--num-layers or --hidden-size, use --precision bf16, or run fewer ranks on it");
}

}  // namespace phalanx
