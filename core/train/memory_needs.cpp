// Adds up what a run will take.
#include "core/train/memory_needs.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "parallel/gradient_sum.h"

namespace phalanx {
namespace {

constexpr double kMebibyte = 1024.0 * 1024.0;
// An assumption: what cudaMemGetInfo calls free is not all there when kernels are first used.
constexpr int64_t kDriverBytes = int64_t{512} << 20;

}  // namespace

GradientBuffer::Options gradient_options(const PhdStage& stage, const ParallelConfig& parallel) {
  const bool sharded =
      parallel.data_parallel_sharding_strategy == DataParallelSharding::optim_grads_params;
  return {.bucket_size = parallel.ddp_bucket_size,
          .overlap = parallel.overlap_grad_reduce,
          .units = sharded ? stage.units() : std::vector<ParameterRange>{}};
}

MemoryNeeds memory_needs(PhdStage& stage, const MemoryQuestion& question) {
  MemoryNeeds needs{.staging = staging_bytes(question.device), .device = question.device};
  if (question.device == Device::cuda) {
    needs.workspace = workspace_bytes(question.device) + kRoundingBytes;
    needs.driver = kDriverBytes;
  }
  const int64_t compute_bytes = dtype_bytes(question.dtype);
  const int64_t master_bytes = dtype_bytes(accumulator_dtype(question.dtype));
  const GradientBuffer::Options options = gradient_options(stage, question.parallel);
  int64_t shard = 0;
  int64_t shard_of_units = 0;
  int64_t resident = question.store.numel();
  std::set<bool> sums_of_units;  // the buffer and the units have one each
  for (const Bucket& bucket : make_buckets(
           question.store, bucket_rules(question.groups, options.bucket_size, options.units))) {
    const int rank = group_of(bucket, question.groups).rank();
    const int64_t own = bucket.counts[static_cast<size_t>(rank)];
    shard += own;
    for (int64_t i = bucket.first_parameter; i < bucket.last_parameter; ++i) {
      const Placement& placement = question.store[i].spec.placement;
      if (placement.tp_replicas > 1 || placement.is_shared_by_stages())
        sums_of_units.insert(bucket.unit >= 0);
    }
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
  needs.scratch = std::ssize(sums_of_units) * GradientSum::kBytes + plan.scratch_bytes +
                  plan.recomputed_bytes + plan.fixed_bytes + plan.batch_bytes;
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
  const bool gpu = needs.device == Device::cuda;
  if (gpu) {
    row("workspace of the kernels", needs.workspace);
    row("left to CUDA", needs.driver);
    row("total on the GPU", needs.on_device());
    row("on the host: copies to and from the GPU", needs.staging);
  }
  if (needs.snapshot > 0)
    row(gpu ? "on the host: copy for checkpoints (at most)" : "copy for checkpoints (at most)",
        needs.snapshot);
  if (!gpu) row("total", needs.total());
  table.pop_back();
  return table;
}

}  // namespace phalanx
