// The layout check itself: silent without a fault; with a wrong collective in one group, it says
// so, names a tensor and that group. And the shrunken copies it trains.
#include <fmt/format.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <ranges>

#include "core/model/model_cost.h"
#include "core/train/run_verification.h"
#include "core/train/shrink_layout.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/train/faulty_process_group.h"

namespace phalanx {
namespace {

/// A model that every axis can cut, and `change`.
RunConfig run_of(const std::string& preset, const std::function<void(RunConfig&)>& change) {
  RunConfig config;
  apply_preset(config, *find_model_preset(preset));
  config.tokenizer = {};
  config.training.run_dir = "unused";
  config.training.train_iters = 5000;  // more than any preset's warm-up
  config.data.mock_data = true;
  change(config);
  return config;
}

std::string config_text(const RunConfig& config) {
  const ParallelConfig& p = config.parallel;
  return fmt::format("hidden {} layers {} tp {} cp {} pp {} vp {} ep {} K {}",
                     config.model.hidden_size, config.model.num_layers,
                     p.tensor_model_parallel_size, p.context_parallel_size,
                     p.pipeline_model_parallel_size, p.num_virtual_stages_per_pipeline_rank,
                     p.expert_model_parallel_size, config.model.phd_copies);
}

LayoutReport report_of(const RunConfig& config, int64_t world_size, const Fault& fault) {
  LayoutReport report;
  const LayoutCase layout = layout_case(shrink_config(config, world_size));
  run_thread_ranks(static_cast<int>(world_size), [&](ThreadRank& rank) {
    CpuBackend backend(1);
    const auto groups_of = [&](const DeviceMesh& mesh) {
      return with_fault(rank.process_groups(mesh), fault);
    };
    const LayoutReport own = verify_layout(layout, backend, world_size, groups_of);
    if (rank.rank() == 0) report = own;
  });
  return report;
}

struct FaultCase {
  const char* name;
  const char* preset;
  void (*change)(RunConfig&);
  int64_t world_size;
  Fault fault;
  const char* axis;
};

void tp2_pp2(RunConfig& config) {
  config.parallel.tensor_model_parallel_size = 2;
  config.parallel.pipeline_model_parallel_size = 2;
}
void tp2_sp_dp2(RunConfig& config) {
  config.parallel.tensor_model_parallel_size = 2;
  config.parallel.sequence_parallel = true;
}
void cp2_tp2(RunConfig& config) {
  config.parallel.context_parallel_size = 2;
  config.parallel.tensor_model_parallel_size = 2;
}
void tp4_of_two_groups(RunConfig& config) {
  config.parallel.tensor_model_parallel_size = 4;
}
void pp2_dp2(RunConfig& config) {
  config.parallel.pipeline_model_parallel_size = 2;
}
void ep2_expert_tp2(RunConfig& config) {
  config.parallel.expert_model_parallel_size = 2;
  config.parallel.expert_tensor_parallel_size = 2;
}
void dp4(RunConfig&) {}

using enum FaultKind;
const FaultCase kFaults[] = {
    {"TensorAllReduceDropped", "tiny", tp2_pp2, 4, {"tp", Collective::all_reduce, drop}, "tp"},
    {"TensorSumScaled", "tiny", tp2_pp2, 4, {"tp", Collective::all_reduce, halve}, "tp"},
    {"SequenceGatherSwapped", "tiny", tp2_sp_dp2, 4, {"tp", Collective::all_gather, swap}, "tp"},
    {"SequenceScatterHalved",
     "tiny",
     tp2_sp_dp2,
     4,
     {"tp", Collective::reduce_scatter, halve},
     "tp"},
    {"KeyValueReplicaSumDropped",
     "tiny",
     tp4_of_two_groups,
     4,
     {"tp", Collective::exchange, zero},
     "tp"},
    {"ContextExchangeZero", "tiny", cp2_tp2, 4, {"cp", Collective::exchange, zero}, "cp"},
    {"ContextExchangeHalved", "tiny", cp2_tp2, 4, {"cp", Collective::exchange, halve}, "cp"},
    {"PipelineMessageHalved", "tiny", pp2_dp2, 4, {"pp", Collective::exchange, halve}, "pp"},
    {"PipelineMessageZero", "tiny", tp2_pp2, 4, {"pp", Collective::exchange, zero}, "pp"},
    {"GradientSumHalved", "tiny", dp4, 4, {"dp_cp", Collective::reduce_scatter, halve}, "dp"},
    {"GradientSumDropped", "tiny", pp2_dp2, 4, {"dp_cp", Collective::reduce_scatter, drop}, "dp"},
    {"ParametersNotGathered", "tiny", dp4, 4, {"dp_cp", Collective::all_gather, drop}, "dp"},
    {"ExpertRowsZero", "tiny-moe", ep2_expert_tp2, 4, {"ep", Collective::all_to_all, zero}, "ep"},
    {"ExpertTensorSumHalved",
     "tiny-moe",
     ep2_expert_tp2,
     4,
     {"expert_tp", Collective::reduce_scatter, halve},
     "expert_tp"},
    {"ExpertTensorRowsHalved",
     "tiny-moe",
     ep2_expert_tp2,
     4,
     {"expert_tp", Collective::all_gather, halve},
     "expert_tp"},
};

class LayoutFault : public testing::TestWithParam<FaultCase> {};

TEST_P(LayoutFault, IsFoundAndNamed) {
  const FaultCase& fault_case = GetParam();
  const RunConfig config = run_of(fault_case.preset, fault_case.change);
  const LayoutReport report = report_of(config, fault_case.world_size, fault_case.fault);
  ASSERT_EQ(report.differences.size(), 1U);
  const LayoutDifference& found = report.differences.front();
  EXPECT_EQ(found.axis, fault_case.axis) << found.what;
  EXPECT_NE(found.tensor, "");
  EXPECT_GT(found.difference, found.tolerance);
}

TEST_P(LayoutFault, IsNotSeenWhereThereIsNone) {
  const FaultCase& fault_case = GetParam();
  const RunConfig config = run_of(fault_case.preset, fault_case.change);
  const LayoutReport report = report_of(config, fault_case.world_size, {});
  EXPECT_THAT(report.differences, testing::IsEmpty());
  EXPECT_GT(report.statistics.num_tensors, 10);
  EXPECT_GT(report.statistics.largest_relative, 0.0);
  // Rounding stays far from the tolerance, or a good layout is refused some day.
  EXPECT_LT(report.statistics.nearest_tolerance, 0.25) << report.statistics.nearest;
}

INSTANTIATE_TEST_SUITE_P(Each, LayoutFault, testing::ValuesIn(kFaults),
                         [](const auto& info) { return std::string(info.param.name); });

/// Layouts of real sizes, on as many ranks as they ask for.
struct ShrinkCase {
  const char* preset;
  int64_t world_size;
  void (*change)(RunConfig&);
};
const ShrinkCase kShrinks[] = {
    {"phd-1.2b", 64,
     [](RunConfig& c) {
       c.parallel.tensor_model_parallel_size = 8;
       c.parallel.sequence_parallel = true;
       c.parallel.pipeline_model_parallel_size = 4;
       c.parallel.pipeline_layout = "5,4,4,3";
     }},
    {"phd-1.2b", 32,
     [](RunConfig& c) {
       c.parallel.tensor_model_parallel_size = 16;  // twice the key-value heads
       c.parallel.context_parallel_size = 2;
     }},
    {"hybridnorm-7b", 96,
     [](RunConfig& c) {
       c.parallel.pipeline_model_parallel_size = 4;
       c.parallel.num_virtual_stages_per_pipeline_rank = 4;
       c.parallel.context_parallel_size = 8;
       c.training.global_batch_size = 96;
     }},
    {"hybridnorm-moe-1b-7b", 64,
     [](RunConfig& c) {
       c.parallel.tensor_model_parallel_size = 2;
       c.parallel.sequence_parallel = true;
       c.parallel.expert_model_parallel_size = 32;
       c.parallel.expert_tensor_parallel_size = 2;
     }},
    {"hybridnorm-543m", 8,
     [](RunConfig& c) {
       c.model.sparse_pattern = KeyPattern::sink_window;
       c.model.sparse_full_layers = 11;
       c.parallel.context_parallel_size = 4;
       c.parallel.pipeline_model_parallel_size = 2;
     }},
    {"small", 1, [](RunConfig&) {}},
};

TEST(ShrinkConfig, StaysLegalAndKeepsTheStructure) {
  for (const ShrinkCase& shrink_case : kShrinks) {
    const RunConfig config = run_of(shrink_case.preset, shrink_case.change);
    ASSERT_THAT(validate(config, shrink_case.world_size), testing::IsEmpty()) << shrink_case.preset;
    const RunConfig small = shrink_config(config, shrink_case.world_size);
    EXPECT_THAT(validate(small, shrink_case.world_size), testing::IsEmpty());
    const ModelConfig& was = config.model;
    const ModelConfig& is = small.model;
    EXPECT_EQ(is.num_attention_heads * was.query_groups(),
              was.num_attention_heads * is.query_groups());
    EXPECT_EQ(is.copies(), was.copies());
    EXPECT_EQ(is.norm_scheme, was.norm_scheme);
    EXPECT_EQ(is.moe_router_topk, was.moe_router_topk);
    EXPECT_EQ(is.untie_embeddings_and_output_weights, was.untie_embeddings_and_output_weights);
    EXPECT_LT(parameter_count(is).total, 1'000'000);
    EXPECT_LE(is.num_layers, was.num_layers);
    EXPECT_EQ(is.sparse_full_layers > 0, was.sparse_full_layers > 0);
  }
}

/// Every layout of some sizes, legal or not; `body` gets what the named models can run.
void for_each_legal_layout(const std::function<void(const RunConfig&, int64_t)>& body) {
  const auto visit = [&](RunConfig config) {
    const ParallelConfig& p = config.parallel;
    const int64_t world_size =
        2 * p.tensor_model_parallel_size * p.context_parallel_size * p.pipeline_model_parallel_size;
    config.training.global_batch_size = 32;
    if (validate(config, world_size).empty()) body(config, world_size);
  };
  for (const ModelPreset& preset : model_presets())
    for (const int64_t bits : std::views::iota(0, 1 << 8)) {
      RunConfig config = run_of(preset.name, [](RunConfig&) {});
      ParallelConfig& p = config.parallel;
      p.tensor_model_parallel_size = int64_t{1} << (bits & 3);
      p.sequence_parallel = p.tensor_model_parallel_size > 1;
      p.context_parallel_size = int64_t{1} << (bits >> 2 & 1);
      p.pipeline_model_parallel_size = int64_t{1} << (bits >> 3 & 3);
      p.num_virtual_stages_per_pipeline_rank = 1 + (bits >> 5 & 1);
      p.expert_model_parallel_size = config.model.num_experts > 0 ? 1 + (bits >> 6 & 1) : 1;
      if ((bits >> 7 & 1) != 0) config.model.phd_copies = 3;
      visit(config);
    }
}

TEST(ShrinkConfig, StaysLegalInEveryLayoutOfEveryNamedModel) {
  int64_t seen = 0;
  for_each_legal_layout([&](const RunConfig& config, int64_t world_size) {
    const RunConfig small = shrink_config(config, world_size);
    ASSERT_THAT(validate(small, world_size), testing::IsEmpty()) << config_text(config);
    EXPECT_LT(parameter_count(small.model).total, 1'500'000) << config_text(config);
    ++seen;
  });
  EXPECT_GT(seen, 500);
}

TEST(ShrinkConfig, KeepsThePatternOfAnUnevenPipeline) {
  const RunConfig config = run_of("hybridnorm-543m", [](RunConfig& c) {
    c.parallel.pipeline_model_parallel_size = 4;
    c.parallel.pipeline_layout = "9,12,8,0";
  });
  const RunConfig small = shrink_config(config, 4);
  EXPECT_EQ(small.parallel.pipeline_layout, "3,4,2,0");
  EXPECT_EQ(small.model.num_layers, 9);
}

TEST(RunVerification, SaysWhatItComparedAndWhatIsWrong) {
  const RunConfig config = run_of("tiny", tp2_sp_dp2);
  for (const bool faulty : {false, true}) {
    VerificationResult result;
    run_thread_ranks(4, [&](ThreadRank& rank) {
      CpuBackend backend(1);
      const auto groups_of = [&](const DeviceMesh& mesh) {
        const Fault fault{faulty ? "tp" : "", Collective::all_gather, swap};
        return with_fault(rank.process_groups(mesh), fault);
      };
      const VerificationResult own = run_verification(config, backend, 4, groups_of);
      if (rank.rank() == 0) result = own;
    });
    EXPECT_EQ(result.same, !faulty);
    if (faulty)
      EXPECT_THAT(result.text, testing::AllOf(testing::HasSubstr("NOT the same"),
                                              testing::HasSubstr("wrong: tp\n"),
                                              testing::HasSubstr("first tensor: ")));
    else
      EXPECT_THAT(result.text,
                  testing::AllOf(testing::HasSubstr("layout verified: 4 rank(s), dp 2"),
                                 testing::HasSubstr("largest relative difference")));
  }
}

}  // namespace
}  // namespace phalanx
