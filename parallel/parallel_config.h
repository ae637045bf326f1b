// ParallelConfig: sizes of the mesh axes and how the data-parallel axis reduces gradients.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/enum_names.h"
#include "kernels/base/fields.h"

namespace phalanx {

/// Order of forwards and backwards on the stages of a pipeline. `automatic`: 1F1B, or interleaved
/// when a rank has several virtual stages.
enum class PipelineScheduleKind : uint8_t {
  automatic,
  gpipe,
  one_forward_one_backward,
  interleaved,
  zero_bubble
};
template <>
struct EnumNames<PipelineScheduleKind> {
  static constexpr std::pair<PipelineScheduleKind, std::string_view> table[] = {
      {PipelineScheduleKind::automatic, "auto"},
      {PipelineScheduleKind::gpipe, "gpipe"},
      {PipelineScheduleKind::one_forward_one_backward, "1f1b"},
      {PipelineScheduleKind::interleaved, "interleaved"},
      {PipelineScheduleKind::zero_bubble, "zero-bubble"}};
};

/// What the data-parallel ranks share out (Rajbhandari et al. 2020): optimizer state only (ZeRO
/// stage 1), or gradients and parameters too (ZeRO stage 3).
enum class DataParallelSharding : uint8_t { optim, optim_grads_params };
template <>
struct EnumNames<DataParallelSharding> {
  static constexpr std::pair<DataParallelSharding, std::string_view> table[] = {
      {DataParallelSharding::optim, "optim"},
      {DataParallelSharding::optim_grads_params, "optim_grads_params"}};
};

/// Activations that the backward computes again instead of keeping: none, what attention makes
/// between its projections, or whole layers.
enum class Recompute : uint8_t { none, attention, layer };
template <>
struct EnumNames<Recompute> {
  static constexpr std::pair<Recompute, std::string_view> table[] = {
      {Recompute::none, "none"}, {Recompute::attention, "attention"}, {Recompute::layer, "layer"}};
};

/// What carries tensors of a GPU between ranks. `automatic`: NCCL where every rank has a GPU of its
/// own, else MPI through the host's memory. Host tensors always go over MPI.
enum class Communication : uint8_t { automatic, nccl, mpi };
template <>
struct EnumNames<Communication> {
  static constexpr std::pair<Communication, std::string_view> table[] = {
      {Communication::automatic, "auto"},
      {Communication::nccl, "nccl"},
      {Communication::mpi, "mpi"}};
};

struct ParallelConfig {
  int64_t tensor_model_parallel_size = 1;
  int64_t pipeline_model_parallel_size = 1;
  int64_t context_parallel_size = 1;
  int64_t expert_model_parallel_size = 1;
  int64_t expert_tensor_parallel_size = 1;
  bool sequence_parallel = false;
  PipelineScheduleKind pipeline_schedule = PipelineScheduleKind::automatic;
  int64_t num_virtual_stages_per_pipeline_rank = 1;
  std::string pipeline_layout;         // "3,4,4,3": layers of each stage; empty: by FLOPs
  std::vector<std::string> recompute;  // one word for all pipeline ranks, or one for each
  DataParallelSharding data_parallel_sharding_strategy = DataParallelSharding::optim;
  bool overlap_grad_reduce = true;
  int64_t ddp_bucket_size = 10'000'000;  // gradient elements per bucket
  Communication comm = Communication::automatic;
};

template <class Config, class Visitor>
requires ConfigOf<Config, ParallelConfig>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Parallelism");
  visit("tensor-model-parallel-size", config.tensor_model_parallel_size,
        "ranks that share each matrix (tp)");
  visit("pipeline-model-parallel-size", config.pipeline_model_parallel_size,
        "ranks that share the layers (pp)");
  visit("context-parallel-size", config.context_parallel_size,
        "ranks that share each sequence (cp)");
  visit("expert-model-parallel-size", config.expert_model_parallel_size,
        "ranks that share the experts (ep)");
  visit("expert-tensor-parallel-size", config.expert_tensor_parallel_size,
        "ranks that share each expert's matrices");
  visit("sequence-parallel", config.sequence_parallel,
        "cut positions over tp where rows are independent");
  visit("pipeline-schedule", config.pipeline_schedule,
        "order of forwards and backwards; auto: 1f1b, or interleaved with virtual stages");
  visit("num-virtual-stages-per-pipeline-rank", config.num_virtual_stages_per_pipeline_rank,
        "model chunks per pipeline rank (interleaved schedule)");
  visit("pipeline-layout", config.pipeline_layout,
        "layers of each (virtual) stage, such as 3,4,4,3; empty: balanced by FLOPs");
  visit("recompute", config.recompute,
        "activations to compute again in the backward: none, attention or layer; one word, or one "
        "per pipeline rank");
  visit("data-parallel-sharding-strategy", config.data_parallel_sharding_strategy,
        "what data-parallel ranks share out");
  visit("overlap-grad-reduce", config.overlap_grad_reduce,
        "reduce gradient buckets while the backward still runs");
  visit("ddp-bucket-size", config.ddp_bucket_size, "gradient elements per reduced bucket");
  visit("comm", config.comm,
        "what carries GPU tensors between ranks; auto: nccl where each rank has its own GPU, else "
        "mpi through host memory");
}

/// What is wrong with `config` on `world_size` ranks: one sentence per problem, each naming option,
/// value and the nearest legal value. Empty if it can run.
std::vector<std::string> validate(const ParallelConfig& config, int64_t world_size);

}  // namespace phalanx
