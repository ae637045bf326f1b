// Every rule of parallel layouts: an illegal value is refused before anything is allocated, by a
// sentence with option, value and a legal value; and that value passes.
#include <gmock/gmock.h>

#include "core/config.h"
#include "core/layout_validate.h"
#include "core/model/stage_options.h"
#include "parallel/context_parallel.h"
#include "parallel/pipeline_schedule.h"

namespace phalanx {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// 8 ranks; 12 heads in 4 groups; 8 layers; sequences of 96 positions in chunks of 4.
constexpr int64_t kRanks = 8;
RunConfig legal() {
  RunConfig config;
  config.model.num_layers = 8;
  config.model.hidden_size = 96;
  config.model.ffn_hidden_size = 72;
  config.model.num_attention_heads = 12;
  config.model.num_query_groups = 4;
  config.model.vocab_size = 250;
  config.model.make_vocab_size_divisible_by = 16;
  config.model.phd_copies = 2;
  config.model.phd_window = 3;
  config.model.phd_chunk = 4;
  config.data.seq_length = 96;
  config.data.mock_data = true;
  config.training.run_dir = "run";
  config.training.train_iters = 10;
  config.training.global_batch_size = 16;
  return config;
}

RunConfig legal_moe() {
  RunConfig config = legal();
  config.model.num_experts = 12;
  config.model.moe_router_topk = 2;
  config.model.moe_ffn_hidden_size = 12;
  return config;
}

struct IllegalLayout {
  const char* name;
  RunConfig (*base)();
  void (*spoil)(RunConfig&);
  const char* expected;
  void (*follow)(RunConfig&);  // what the sentence proposes
};
void PrintTo(const IllegalLayout& item, std::ostream* out) {
  *out << item.name;
}

class IllegalLayouts : public testing::TestWithParam<IllegalLayout> {};

TEST_P(IllegalLayouts, AreRefusedWithALegalValue) {
  RunConfig config = GetParam().base();
  EXPECT_THAT(validate(config, kRanks), IsEmpty());
  GetParam().spoil(config);
  EXPECT_THAT(validate(config, kRanks), Contains(HasSubstr(GetParam().expected)));
  GetParam().follow(config);
  EXPECT_THAT(validate(config, kRanks), IsEmpty());
}

using Config = RunConfig;
const IllegalLayout kIllegal[] = {
    // sizes of the mesh
    {"tp_world", legal, [](Config& c) { c.parallel.tensor_model_parallel_size = 3; },
     "tensor-model-parallel-size 3 does not divide the number of ranks 8; nearest "
     "tensor-model-parallel-size is 2",
     [](Config& c) { c.parallel.tensor_model_parallel_size = 2; }},
    {"pp_world", legal, [](Config& c) { c.parallel.pipeline_model_parallel_size = 3; },
     "nearest pipeline-model-parallel-size is 2",
     [](Config& c) { c.parallel.pipeline_model_parallel_size = 2; }},
    {"cp_world", legal, [](Config& c) { c.parallel.context_parallel_size = 3; },
     "nearest context-parallel-size is 2", [](Config& c) { c.parallel.context_parallel_size = 2; }},
    {"cp_zero", legal, [](Config& c) { c.parallel.context_parallel_size = 0; },
     "context-parallel-size 0 is below 1; nearest is 1",
     [](Config& c) { c.parallel.context_parallel_size = 1; }},
    {"ep_world", legal_moe, [](Config& c) { c.parallel.expert_model_parallel_size = 3; },
     "expert-model-parallel-size 3 does not divide the ranks of a pipeline stage, 8; nearest "
     "expert-model-parallel-size is 2",
     [](Config& c) { c.parallel.expert_model_parallel_size = 2; }},
    {"bucket", legal, [](Config& c) { c.parallel.ddp_bucket_size = 0; },
     "ddp-bucket-size 0 is below 1; nearest is 1",
     [](Config& c) { c.parallel.ddp_bucket_size = 1; }},
    // tensor
    {"tp_heads", legal,
     [](Config& c) {
       c.parallel.tensor_model_parallel_size = 8;
       c.model.num_query_groups = 1;
       c.model.ffn_hidden_size = 80;
     },
     "tensor-model-parallel-size 8 does not divide num-attention-heads 12; try 4",
     [](Config& c) { c.parallel.tensor_model_parallel_size = 4; }},
    {"tp_groups", legal,
     [](Config& c) {
       c.parallel.tensor_model_parallel_size = 4;
       c.model.num_query_groups = 6;
     },
     "tensor-model-parallel-size 4 neither divides num-query-groups 6 nor is a multiple of it; "
     "try 2",
     [](Config& c) { c.parallel.tensor_model_parallel_size = 2; }},
    {"tp_ffn", legal,
     [](Config& c) {
       c.parallel.tensor_model_parallel_size = 4;
       c.model.ffn_hidden_size = 70;
     },
     "tensor-model-parallel-size 4 does not divide ffn-hidden-size 70; try 2",
     [](Config& c) { c.parallel.tensor_model_parallel_size = 2; }},
    {"tp_vocabulary", legal,
     [](Config& c) {
       c.parallel.tensor_model_parallel_size = 4;
       c.model.make_vocab_size_divisible_by = 1;
     },
     "tensor-model-parallel-size 4 does not divide the padded vocabulary "
     "(make-vocab-size-divisible-by) of 250; try 2",
     [](Config& c) { c.parallel.tensor_model_parallel_size = 2; }},
    // positions
    {"cp_length", legal,
     [](Config& c) {
       c.parallel.context_parallel_size = 2;
       c.data.seq_length = 100;
     },
     "seq-length 100 cannot be cut into 2 x context-parallel-size 2 pieces of a multiple of 4 "
     "positions; try seq-length 96 or 112",
     [](Config& c) { c.data.seq_length = 112; }},
    {"cp_short", legal,
     [](Config& c) {
       c.parallel.context_parallel_size = 4;
       c.data.seq_length = 16;
     },
     "seq-length 16 cannot be cut into 2 x context-parallel-size 4 pieces of a multiple of 4 "
     "positions; try seq-length 32",
     [](Config& c) { c.data.seq_length = 32; }},
    {"cp_sparse", legal,
     [](Config& c) {
       c.parallel.context_parallel_size = 2;
       c.model.sparse_pattern = KeyPattern::sink_window;
       c.model.sparse_block = 6;
       c.model.sparse_full_layers = 3;
       c.data.seq_length = 112;
     },
     "a multiple of 12 positions; try seq-length 96 or 144",
     [](Config& c) { c.data.seq_length = 144; }},
    {"sp_length", legal,
     [](Config& c) {
       c.parallel.tensor_model_parallel_size = 4;
       c.parallel.sequence_parallel = true;
       c.model.phd = PhdMode::phd;
       c.data.seq_length = 98;
     },
     "sequence-parallel cuts seq-length 98 over 1 context x 4 tensor ranks, which does not come "
     "out even; try seq-length 96 or 100",
     [](Config& c) { c.data.seq_length = 100; }},
    // A length for sp alone, 100, would break the chunk of 6.
    {"sp_chunk", legal,
     [](Config& c) {
       c.parallel.tensor_model_parallel_size = 4;
       c.parallel.sequence_parallel = true;
       c.model.phd_chunk = 6;
       c.data.seq_length = 102;
     },
     "try seq-length 96 or 108", [](Config& c) { c.data.seq_length = 108; }},
    {"sp_cp_length", legal,
     [](Config& c) {
       c.parallel.tensor_model_parallel_size = 4;
       c.parallel.context_parallel_size = 2;
       c.parallel.sequence_parallel = true;
       c.model.phd_chunk = 1;
       c.data.seq_length = 100;
     },
     "sequence-parallel cuts seq-length 100 over 2 context x 4 tensor ranks, which does not come "
     "out even; try seq-length 96 or 104",
     [](Config& c) { c.data.seq_length = 104; }},
    // pipeline
    {"virtual_zero", legal, [](Config& c) { c.parallel.num_virtual_stages_per_pipeline_rank = 0; },
     "num-virtual-stages-per-pipeline-rank 0 is too small; the smallest value is 1",
     [](Config& c) { c.parallel.num_virtual_stages_per_pipeline_rank = 1; }},
    {"layout_hole", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 4;
       c.model.num_layers = 4;
       c.parallel.pipeline_layout = "0,3,0,1";
     },
     "pipeline-layout 0,3,0,1 leaves pipeline rank 2 without a layer",
     [](Config& c) { c.parallel.pipeline_layout = "0,2,1,1"; }},
    {"pp_layers", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 8;
       c.model.num_layers = 6;
     },
     "pipeline-model-parallel-size 8 x num-virtual-stages-per-pipeline-rank 1 is more than "
     "num-layers 6; try pipeline-model-parallel-size 4",
     [](Config& c) { c.parallel.pipeline_model_parallel_size = 4; }},
    {"chunks_layers", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 4;
       c.parallel.num_virtual_stages_per_pipeline_rank = 4;
     },
     "is more than num-layers 8; try pipeline-model-parallel-size 2",
     [](Config& c) { c.parallel.pipeline_model_parallel_size = 2; }},
    {"chunks_alone", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 2;
       c.parallel.num_virtual_stages_per_pipeline_rank = 9;
     },
     "try pipeline-model-parallel-size 1 with num-virtual-stages-per-pipeline-rank 1",
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 1;
       c.parallel.num_virtual_stages_per_pipeline_rank = 1;
     }},
    {"schedule_chunks", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 2;
       c.parallel.num_virtual_stages_per_pipeline_rank = 2;
       c.parallel.pipeline_schedule = PipelineScheduleKind::zero_bubble;
     },
     "pipeline-schedule zero-bubble has one virtual stage per rank, but "
     "num-virtual-stages-per-pipeline-rank is 2; use 1, or pipeline-schedule interleaved",
     [](Config& c) { c.parallel.pipeline_schedule = PipelineScheduleKind::interleaved; }},
    {"interleaved_alone", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 2;
       c.parallel.pipeline_schedule = PipelineScheduleKind::interleaved;
     },
     "pipeline-schedule interleaved needs num-virtual-stages-per-pipeline-rank 2 or more",
     [](Config& c) { c.parallel.num_virtual_stages_per_pipeline_rank = 2; }},
    {"interleaved_micro_batches", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 4;
       c.parallel.num_virtual_stages_per_pipeline_rank = 2;
       c.training.global_batch_size = 12;  // 6 micro-batches on each of 2 data ranks
     },
     "does not divide the 6 micro-batches of a step; use 4 or 8",
     [](Config& c) { c.training.global_batch_size = 16; }},
    {"layout_count", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 2;
       c.parallel.pipeline_layout = "3,3,2";
     },
     "pipeline-layout 3,3,2 has 3 stages for 2 (pipeline ranks times virtual stages); try 4,4",
     [](Config& c) { c.parallel.pipeline_layout = "4,4"; }},
    {"layout_sum", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 2;
       c.parallel.pipeline_layout = "3,4";
     },
     "pipeline-layout 3,4 has 7 layers for 8; try 4,4",
     [](Config& c) { c.parallel.pipeline_layout = "4,4"; }},
    {"layout_word", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 4;
       c.parallel.pipeline_layout = "2,x,2,2";
     },
     "pipeline-layout 2,x,2,2: 'x' is not a number of layers",
     [](Config& c) { c.parallel.pipeline_layout = "2,2,2,2"; }},
    // recomputation
    {"recompute_count", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 2;
       c.parallel.recompute = {"none", "layer", "layer"};
     },
     "recompute has 3 words for 2 pipeline ranks; give one for all, or one for each",
     [](Config& c) {
       c.parallel.recompute = {"none", "layer"};
     }},
    {"recompute_word", legal, [](Config& c) { c.parallel.recompute = {"layers"}; }, "layers",
     [](Config& c) { c.parallel.recompute = {"layer"}; }},
    {"recompute_zero_bubble", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 2;
       c.parallel.pipeline_schedule = PipelineScheduleKind::zero_bubble;
       c.parallel.recompute = {"none", "layer"};
     },
     "use recompute attention, or pipeline-schedule 1f1b",
     [](Config& c) {
       c.parallel.recompute = {"none", "attention"};
     }},
    {"sharding_zero_bubble", legal,
     [](Config& c) {
       c.parallel.pipeline_model_parallel_size = 2;
       c.parallel.pipeline_schedule = PipelineScheduleKind::zero_bubble;
       c.parallel.data_parallel_sharding_strategy = DataParallelSharding::optim_grads_params;
     },
     "data-parallel-sharding-strategy optim_grads_params",
     [](Config& c) { c.parallel.data_parallel_sharding_strategy = DataParallelSharding::optim; }},
    // experts
    {"ep_dense", legal, [](Config& c) { c.parallel.expert_model_parallel_size = 2; },
     "expert-model-parallel-size 2 and expert-tensor-parallel-size 1 share out experts, and "
     "num-experts is 0; use 1 and 1",
     [](Config& c) { c.parallel.expert_model_parallel_size = 1; }},
    {"ep_experts", legal_moe, [](Config& c) { c.parallel.expert_model_parallel_size = 8; },
     "expert-model-parallel-size 8 does not divide num-experts 12; try 4",
     [](Config& c) { c.parallel.expert_model_parallel_size = 4; }},
    {"etp_ffn", legal_moe, [](Config& c) { c.parallel.expert_tensor_parallel_size = 8; },
     "expert-tensor-parallel-size 8 does not divide moe-ffn-hidden-size 12; try 4",
     [](Config& c) { c.parallel.expert_tensor_parallel_size = 4; }},
    {"tp_without_sp", legal_moe, [](Config& c) { c.parallel.tensor_model_parallel_size = 2; },
     "tensor-model-parallel-size 2 with experts needs sequence-parallel; add --sequence-parallel",
     [](Config& c) { c.parallel.sequence_parallel = true; }},
    // batches
    {"batch", legal, [](Config& c) { c.training.global_batch_size = 12; },
     "global-batch-size 12 is not divisible by micro-batch-size 1 x 8 data-parallel ranks; try 8 "
     "or 16",
     [](Config& c) { c.training.global_batch_size = 8; }},
};
INSTANTIATE_TEST_SUITE_P(All, IllegalLayouts, testing::ValuesIn(kIllegal),
                         [](const auto& test) { return std::string(test.param.name); });

// Followed anywhere, advice on the tensor-parallel size satisfies all four rules at once.
TEST(LayoutAdvice, OnTensorParallelSizesAlwaysPasses) {
  int64_t refused = 0;
  for (const int64_t heads : {4, 6, 8, 12})
    for (const int64_t groups : {1, 2, 3, 4, 6, 12})
      for (const int64_t ffn : {20, 24, 36})
        for (const int64_t tp : {2, 3, 4, 6, 8, 12, 24}) {
          if (heads % groups != 0) continue;
          RunConfig config = legal();
          config.model.num_attention_heads = heads;
          config.model.num_query_groups = groups;
          config.model.ffn_hidden_size = ffn;
          config.parallel.tensor_model_parallel_size = tp;
          config.model.make_vocab_size_divisible_by = 48;
          for (const std::string& problem : validate_layout(config, 24)) {
            ++refused;
            config.parallel.tensor_model_parallel_size =
                std::stoll(problem.substr(problem.rfind(' ')));
            EXPECT_THAT(validate_layout(config, 24), IsEmpty()) << problem;
          }
        }
  EXPECT_GT(refused, 50);
}

// The same for lengths, over both cuts and the chunk.
TEST(LayoutAdvice, OnLengthsAlwaysPasses) {
  int64_t refused = 0;
  for (const int64_t cp : {1, 2, 4})
    for (const int64_t tp : {1, 2, 4, 8})
      for (const int64_t chunk : {1, 3, 4, 6})
        for (int64_t length = chunk; length < 130; length += chunk) {
          RunConfig config = legal();
          config.model.num_attention_heads = 8;
          config.model.phd_chunk = chunk;
          config.parallel.context_parallel_size = cp;
          config.parallel.tensor_model_parallel_size = tp;
          config.parallel.sequence_parallel = true;
          config.data.seq_length = length;
          for (const std::string& problem : validate_layout(config, 32)) {
            ++refused;
            config.data.seq_length = std::stoll(problem.substr(problem.rfind(' ')));
            EXPECT_THAT(validate_layout(config, 32), IsEmpty()) << problem;
            EXPECT_THAT(validate(config.model, config.data.seq_length), IsEmpty()) << problem;
          }
        }
  EXPECT_GT(refused, 100);
}

TEST(ValidateContext, ProposedLengthsPass) {
  EXPECT_THAT(validate_context(0, 2, 3), ElementsAre(HasSubstr("try seq-length 12")));
  EXPECT_THAT(validate_context(30, 2, 3), ElementsAre(HasSubstr("try seq-length 24 or 36")));
  for (const int64_t length : {12, 24, 36}) EXPECT_THAT(validate_context(length, 2, 3), IsEmpty());
}

TEST(ValidateSchedule, EveryRule) {
  using enum PipelineScheduleKind;
  EXPECT_THAT(validate_schedule(gpipe, 2, 1, 0),
              ElementsAre(HasSubstr("0 micro-batches per step cannot run; use 1 or more")));
  EXPECT_THAT(validate_schedule(gpipe, 2, 1, 1), IsEmpty());
  EXPECT_THAT(validate_schedule(gpipe, 0, 1, 4),
              ElementsAre(HasSubstr("pipeline-model-parallel-size 0")));
  EXPECT_THAT(validate_schedule(interleaved, 4, 2, 3), ElementsAre(HasSubstr("use 4")));
  EXPECT_THAT(validate_schedule(interleaved, 4, 2, 4), IsEmpty());
}

}  // namespace
}  // namespace phalanx
