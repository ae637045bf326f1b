// Model configuration: parameter counts of the named models, norm placements, masks, illegal
// values.
#include "core/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/model/model_cost.h"
#include "core/model/model_presets.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

const ModelConfig& preset(const std::string& name) {
  const ModelPreset* found = find_model_preset(name);
  EXPECT_NE(found, nullptr) << name;
  return found->model;
}

// Counted once more, by the formula as it stands on paper. `norm_width` is the number of norm
// weights of all layers.
int64_t closed_form(int64_t layers, int64_t hidden, int64_t ffn, int64_t kv_width, int64_t vocab,
                    int64_t norm_weights) {
  return vocab * hidden + hidden + norm_weights +
         layers * (2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * ffn);
}

// The printed sizes, in tenths of millions, are those of the matrices; norm weights add less than
// 0.1 million.
TEST(ModelPresets, SizesAreThePapers) {
  const std::tuple<const char*, const char*, double> sizes[] = {
      {"phd-151m", "hybridnorm-151m", 151.4},
      {"phd-550m", "hybridnorm-550m", 550.5},
      {"phd-1.2b", "hybridnorm-1.2b", 1178.6}};
  for (const auto& [phd, hybrid, millions] : sizes) {
    for (const char* name : {phd, hybrid}) {
      const ParameterCount count = parameter_count(preset(name));
      EXPECT_NEAR(static_cast<double>(count.total - count.norms) / 1e6, millions, 0.05) << name;
      EXPECT_LT(count.norms, 100'000) << name;
      EXPECT_EQ(preset(name).padded_vocab_size(), 100352);
      EXPECT_EQ(count.head, 0);
    }
  }
}

TEST(ModelPresets, CountsFollowTheClosedForm) {
  // Pre-Norm: two norms of the hidden width per layer.
  EXPECT_EQ(parameter_count(preset("phd-151m")).total,
            closed_form(12, 768, 2048, 4 * 48, 100352, 12 * 2 * 768));
  EXPECT_EQ(parameter_count(preset("phd-1.2b")).total,
            closed_form(16, 2048, 8192, 8 * 64, 100352, 16 * 2 * 2048));
  // HybridNorm*: q, k, v norms of the head dim and one norm of the hidden width, two in layer 0.
  EXPECT_EQ(parameter_count(preset("hybridnorm-151m")).total,
            closed_form(12, 768, 2048, 4 * 48, 100352, 12 * (3 * 48 + 768) + 768));
  EXPECT_EQ(parameter_count(preset("hybridnorm-285m")).total,
            closed_form(12, 1024, 4096, 4 * 64, 100352, 12 * (3 * 64 + 1024) + 1024));
  EXPECT_EQ(parameter_count(preset("hybridnorm-550m")).total,
            closed_form(16, 1536, 4096, 4 * 96, 100352, 16 * (3 * 96 + 1536) + 1536));
  EXPECT_EQ(parameter_count(preset("hybridnorm-543m")).total,
            closed_form(29, 1024, 4096, 4 * 64, 100352, 29 * (3 * 64 + 1024) + 1024));
  EXPECT_EQ(parameter_count(preset("hybridnorm-1.2b")).total,
            closed_form(16, 2048, 8192, 8 * 64, 100352, 16 * (3 * 64 + 2048) + 2048));
  // The 7B has its own head and one more norm per layer, on the attention's output.
  EXPECT_EQ(parameter_count(preset("hybridnorm-7b")).total,
            closed_form(32, 4096, 11008, 4096, 100352, 32 * (3 * 128 + 2 * 4096) + 4096) +
                100352 * 4096LL);
}

TEST(ModelPresets, MixtureOfExpertsCountsTotalAndActive) {
  const ParameterCount count = parameter_count(preset("hybridnorm-moe-1b-7b"));
  const int64_t expert = 3 * 2048 * 1024;
  const int64_t rest =
      2 * 50304LL * 2048 + 2048 + 2048 + 16 * (4LL * 2048 * 2048 + 2048 * 64 + 3 * 128 + 2048);
  EXPECT_EQ(count.total, rest + 16 * 64LL * expert);
  EXPECT_EQ(count.active, rest + 16 * 8LL * expert);
  EXPECT_NEAR(static_cast<double>(count.total), 6.9e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(count.active), 1.3e9, 0.05e9);
}

TEST(ModelPresets, AreLegal) {
  for (const auto& preset : model_presets())
    EXPECT_THAT(validate(preset.model, preset.seq_length), IsEmpty()) << preset.name;
}

TEST(NormPlacement, HybridNormStarIsSpecialOnlyInLayerZero) {
  ModelConfig config;
  config.norm_scheme = NormScheme::hybrid_norm_star;
  const NormPlacement first = norm_placement(config, 0);
  EXPECT_TRUE(first.attention_norm);
  EXPECT_FALSE(first.feed_forward_residual_normed);
  EXPECT_EQ(first.v_norm, HeadNorm::per_head);
  const NormPlacement second = norm_placement(config, 1);
  EXPECT_FALSE(second.attention_norm);
  EXPECT_TRUE(second.feed_forward_residual_normed);
  config.norm_scheme = NormScheme::hybrid_norm;
  EXPECT_EQ(norm_placement(config, 0), second);
  EXPECT_EQ(norm_placement(config, 3), second);
}

TEST(NormPlacement, NamedSchemesSetTheSwitchesOfThePaper) {
  ModelConfig config;
  const auto switches = [&](NormScheme scheme, int64_t layer) {
    config.norm_scheme = scheme;
    const NormPlacement p = norm_placement(config, layer);
    return std::array{p.attention_norm, p.feed_forward_norm, p.attention_residual_normed,
                      p.feed_forward_residual_normed};
  };
  using Switches = std::array<bool, 4>;
  EXPECT_EQ(switches(NormScheme::pre_norm, 1), (Switches{true, true, false, false}));
  EXPECT_EQ(switches(NormScheme::pre_post, 1), (Switches{true, true, false, true}));
  EXPECT_EQ(switches(NormScheme::post_pre, 1), (Switches{true, true, true, false}));
  EXPECT_EQ(switches(NormScheme::post_norm, 1), (Switches{true, true, true, true}));
  EXPECT_EQ(switches(NormScheme::post_norm, 0), (Switches{false, true, false, true}));
  EXPECT_EQ(switches(NormScheme::olmo2, 1), (Switches{false, false, false, false}));
  const NormPlacement olmo2 = norm_placement(config, 1);
  EXPECT_TRUE(olmo2.attention_output_norm && olmo2.feed_forward_output_norm);
  EXPECT_EQ(olmo2.q_norm, HeadNorm::full_width);
  EXPECT_EQ(olmo2.v_norm, HeadNorm::none);
  config.norm_scheme = NormScheme::pre_qk_norm;
  EXPECT_EQ(norm_placement(config, 2).k_norm, HeadNorm::per_head);
}

TEST(NormPlacement, SevenBillionVariantScalesItsOutputNorm) {
  const ModelConfig& config = preset("hybridnorm-7b");
  const NormPlacement placement = norm_placement(config, 5);
  EXPECT_TRUE(placement.attention_output_norm);
  EXPECT_DOUBLE_EQ(placement.attention_output_norm_weight, 1.0 / 8.0);  // 1 / sqrt(2 * 32)
}

TEST(NormPlacement, SingleSwitchesWinOverTheScheme) {
  ModelConfig config;
  config.norm_scheme = NormScheme::hybrid_norm;
  config.attention_norm = Override::on;
  config.v_layernorm = Override::off;
  config.ffn_residual_normed = Override::off;
  const NormPlacement placement = norm_placement(config, 1);
  EXPECT_TRUE(placement.attention_norm);
  EXPECT_EQ(placement.v_norm, HeadNorm::none);
  EXPECT_EQ(placement.q_norm, HeadNorm::per_head);
  EXPECT_FALSE(placement.feed_forward_residual_normed);
}

TEST(AttentionMaskOfConfig, ModesSetWindowAndChunk) {
  ModelConfig config;
  config.phd_copies = 3;
  config.phd = PhdMode::phd;
  EXPECT_EQ(attention_mask(config, 0).window, 1);
  config.phd = PhdMode::swa;
  EXPECT_EQ(attention_mask(config, 0).window, 16);
  EXPECT_EQ(attention_mask(config, 0).chunk, AttentionMask::kNoChunk);
  config.phd = PhdMode::cswa;
  EXPECT_EQ(attention_mask(config, 0).chunk, 32);
  config.phd = PhdMode::naive;
  EXPECT_EQ(attention_mask(config, 0).visibility, CopyVisibility::naive);
}

TEST(AttentionMaskOfConfig, LongGenKeepsTheMiddleLayersFull) {
  ModelConfig config;
  config.num_layers = 32;
  config.sparse_pattern = KeyPattern::strided;
  for (int64_t layer = 0; layer < 32; ++layer) {
    const bool full = layer >= 10 && layer <= 21;
    EXPECT_EQ(attention_mask(config, layer).pattern, full ? KeyPattern::full : KeyPattern::strided)
        << layer;
  }
}

TEST(Initialisation, StandardDeviationsAreThePapers) {
  const ModelConfig& config = preset("hybridnorm-1.2b");
  EXPECT_NEAR(base_init_std(config), 0.013975, 1e-6);
  EXPECT_NEAR(output_init_std(config, 7), 0.0024705, 1e-7);
  ModelConfig other = config;
  other.init_method = InitScheme::normal;
  EXPECT_EQ(output_init_std(other, 7), base_init_std(config));
  other.init_method = InitScheme::depth_scaled;
  EXPECT_DOUBLE_EQ(output_init_std(other, 7), base_init_std(config) / 4);  // sqrt(2 * 8)
}

struct IllegalCase {
  const char* name;
  void (*spoil)(ModelConfig&);
  int64_t seq_length;
  const char* expected;
};

class IllegalModel : public ::testing::TestWithParam<IllegalCase> {};

TEST_P(IllegalModel, IsNamedWithTheNearestLegalValue) {
  ModelConfig config;
  config.phd_copies = 2;
  ASSERT_THAT(validate(config, 64), IsEmpty());
  GetParam().spoil(config);
  const auto problems = validate(config, GetParam().seq_length);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_THAT(problems[0], HasSubstr(GetParam().expected));
}

INSTANTIATE_TEST_SUITE_P(
    All, IllegalModel,
    ::testing::Values(
        IllegalCase{"copies", [](ModelConfig& c) { c.phd_copies = 0; }, 64,
                    "phd-copies 0 is too small; the smallest value is 1"},
        IllegalCase{"window", [](ModelConfig& c) { c.phd_window = -3; }, 64,
                    "phd-window -3 is too small; the smallest value is 1"},
        IllegalCase{"chunk", [](ModelConfig& c) { c.phd_chunk = 0; }, 64, "phd-chunk 0"},
        IllegalCase{"seq", [](ModelConfig&) {}, 100,
                    "seq-length 100 is not divisible by phd-chunk 32; try seq-length 96 or "
                    "phd-chunk 25"},
        IllegalCase{"groups", [](ModelConfig& c) { c.num_query_groups = 3; }, 64,
                    "num-query-groups 3 does not divide num-attention-heads 4; try 2"},
        IllegalCase{"heads", [](ModelConfig& c) { c.num_attention_heads = 3; }, 64,
                    "hidden-size 128 is not divisible by num-attention-heads 3; try hidden-size "
                    "129 or num-attention-heads 2"},
        IllegalCase{"odd", [](ModelConfig& c) { c.kv_channels = 33; }, 64, "try kv-channels 34"},
        IllegalCase{"layers", [](ModelConfig& c) { c.num_layers = 0; }, 64, "num-layers 0"},
        IllegalCase{"vocab", [](ModelConfig& c) { c.vocab_size = -1; }, 64, "vocab-size -1"},
        IllegalCase{"epsilon", [](ModelConfig& c) { c.norm_epsilon = 0; }, 64, "norm-epsilon 0"},
        IllegalCase{"zloss", [](ModelConfig& c) { c.z_loss_coeff = -1; }, 64, "z-loss-coeff -1"},
        IllegalCase{"sparse", [](ModelConfig& c) { c.sparse_full_layers = 9; }, 64,
                    "sparse-full-layers 9 is not between 0 and num-layers 4; try 4"},
        IllegalCase{"topk",
                    [](ModelConfig& c) {
                      c.num_experts = 4;
                      c.moe_router_topk = 8;
                    },
                    64, "moe-router-topk 8 is not between 1 and num-experts 4; try 4"},
        IllegalCase{"norms",
                    [](ModelConfig& c) {
                      c.ffn_norm = Override::off;
                      c.ffn_residual_normed = Override::on;
                    },
                    64, "ffn-residual-normed on needs the norm"}),
    [](const auto& test) { return test.param.name; });

TEST(IllegalModels, AllProblemsAtOnce) {
  ModelConfig config;
  config.num_layers = 0;
  config.phd_copies = 0;
  config.num_query_groups = 3;
  EXPECT_EQ(validate(config, 64).size(), 3u);
}

TEST(ValidateExperts, NamesEveryProblemWithItsFix) {
  const ModelConfig moe{.num_experts = 6, .moe_ffn_hidden_size = 10};
  EXPECT_THAT(validate_experts(moe, {}), ::testing::IsEmpty());
  const std::vector<std::string> problems =
      validate_experts(moe, {.tensor_model_parallel_size = 2,
                             .expert_model_parallel_size = 4,
                             .expert_tensor_parallel_size = 4});
  ASSERT_EQ(problems.size(), 3U);
  EXPECT_THAT(problems[0], ::testing::HasSubstr("does not divide num-experts 6; try 2"));
  EXPECT_THAT(problems[1], ::testing::HasSubstr("does not divide moe-ffn-hidden-size 10; try 2"));
  EXPECT_THAT(problems[2], ::testing::HasSubstr("add --sequence-parallel"));
  EXPECT_THAT(validate_experts(moe, {.tensor_model_parallel_size = 2,
                                     .expert_model_parallel_size = 3,
                                     .expert_tensor_parallel_size = 5,
                                     .sequence_parallel = true}),
              ::testing::IsEmpty());
  EXPECT_EQ(validate_experts(ModelConfig{}, {.expert_model_parallel_size = 2}).size(), 1U);
}

}  // namespace
}  // namespace phalanx
