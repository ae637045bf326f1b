// ParallelConfig: sizes of the mesh axes and how the data-parallel axis reduces gradients.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/fields.h"

namespace phalanx {

struct ParallelConfig {
  int64_t tensor_model_parallel_size = 1;
  int64_t pipeline_model_parallel_size = 1;
  int64_t context_parallel_size = 1;
  int64_t expert_model_parallel_size = 1;
  int64_t expert_tensor_parallel_size = 1;
  bool sequence_parallel = false;
  bool overlap_grad_reduce = true;
  int64_t ddp_bucket_size = 10'000'000;  // gradient elements per bucket
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
  visit("overlap-grad-reduce", config.overlap_grad_reduce,
        "reduce gradient buckets while the backward still runs");
  visit("ddp-bucket-size", config.ddp_bucket_size, "gradient elements per reduced bucket");
}

/// What is wrong with `config` on `world_size` ranks: one sentence per problem, each naming option,
/// value and the nearest legal value. Empty if it can run.
std::vector<std::string> validate(const ParallelConfig& config, int64_t world_size);

}  // namespace phalanx
