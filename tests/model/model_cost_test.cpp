// Costs: pairs against brute force over the mask, FLOPs against a second count row by row.
#include "core/model/model_cost.h"

#include <gtest/gtest.h>

#include "core/model/model_presets.h"

namespace phalanx {
namespace {

VisiblePairs brute_force(const AttentionMask& mask, int64_t positions, int64_t first_copy) {
  VisiblePairs pairs;
  for (int64_t n = 0; n < positions; ++n)
    for (int64_t j = first_copy; j < mask.copies; ++j)
      for (int64_t m = 0; m < positions; ++m)
        for (int64_t i = 0; i < mask.copies; ++i)
          if (mask.visible({n, j}, {m, i})) ++(i == 0 ? pairs.original : pairs.hidden);
  return pairs;
}

void expect_equal(const AttentionMask& mask, int64_t positions) {
  for (int64_t first = 0; first < mask.copies; ++first) {
    const VisiblePairs expected = brute_force(mask, positions, first);
    const VisiblePairs counted = visible_pairs(mask, positions, first);
    EXPECT_EQ(counted.original, expected.original)
        << "K " << mask.copies << " W " << mask.window << " C " << mask.chunk;
    EXPECT_EQ(counted.hidden, expected.hidden)
        << "K " << mask.copies << " W " << mask.window << " C " << mask.chunk;
  }
}

TEST(VisiblePairs, EqualBruteForceForEveryWindowAndChunk) {
  for (const auto unit : {WindowUnit::positions, WindowUnit::hidden_tokens})
    for (const int64_t copies : {1, 2, 3, 5})
      for (const int64_t window : {1, 3, 4, 16})
        for (const int64_t chunk : {int64_t{1}, int64_t{4}, int64_t{7}, AttentionMask::kNoChunk})
          expect_equal({.copies = copies, .window = window, .chunk = chunk, .unit = unit}, 21);
}

TEST(VisiblePairs, EqualBruteForceForNaiveRepetition) {
  for (const int64_t copies : {1, 2, 4})
    expect_equal({.copies = copies, .visibility = CopyVisibility::naive}, 19);
}

TEST(VisiblePairs, EqualBruteForceForSparsePatterns) {
  for (const auto pattern : {KeyPattern::sink_window, KeyPattern::strided})
    for (const auto visibility : {CopyVisibility::local, CopyVisibility::naive})
      for (const int64_t blocks : {1, 2, 3})
        expect_equal({.copies = 2,
                      .visibility = visibility,
                      .window = 4,
                      .chunk = 8,
                      .pattern = pattern,
                      .block = 3,
                      .sink_blocks = blocks - 1,
                      .window_blocks = blocks,
                      .stride_blocks = blocks + 1,
                      .local_blocks = blocks},
                     31);
}

TEST(ModelCost, EqualsACountRowByRow) {
  ModelConfig c = find_model_preset("tiny")->model;
  c.vocab_size = 257;
  c.phd_copies = 3;
  const int64_t positions = 64;
  const int64_t attention = c.num_attention_heads * c.head_dim();
  double flops = 0;
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    const AttentionMask mask = attention_mask(c, layer);
    for (int64_t n = 0; n < positions; ++n) {
      for (int64_t copy = 0; copy < c.phd_copies; ++copy) {
        flops += 2.0 * 2 * static_cast<double>(c.hidden_size * c.query_groups() * c.head_dim());
        // Only the last copy of the last layer is read by the loss.
        if (layer + 1 == c.num_layers && copy + 1 < c.phd_copies) continue;
        flops += 2.0 * static_cast<double>(2 * c.hidden_size * attention);
        flops += 2.0 * static_cast<double>(3 * c.hidden_size * c.ffn_hidden_size);
        for (int64_t m = 0; m <= n; ++m)
          for (int64_t i = 0; i < c.phd_copies; ++i)
            if (mask.visible({n, copy}, {m, i})) flops += 4.0 * static_cast<double>(attention);
      }
      if (layer == 0) flops += 2.0 * static_cast<double>(c.padded_vocab_size() * c.hidden_size);
    }
  }
  const ModelCost cost = model_cost(c, positions);
  // Sums of whole numbers far below 2^53: exact but for the divisions by the length.
  EXPECT_NEAR(cost.forward_flops_per_token, flops / positions, 1e-9 * flops / positions);
  EXPECT_EQ(cost.backward_flops_per_token, 2 * cost.forward_flops_per_token);
}

TEST(ModelCost, ExpertsCostTheirRouterAndTheChosenOnes) {
  ModelConfig moe = find_model_preset("tiny-moe")->model;
  moe.vocab_size = 257;
  ModelConfig dense = moe;
  dense.num_experts = 0;
  dense.ffn_hidden_size = moe.moe_router_topk * moe.moe_ffn_hidden_size;
  const int64_t router = moe.num_experts * moe.hidden_size;
  const int64_t expert = 3 * moe.hidden_size * moe.moe_ffn_hidden_size;
  const ParameterCount count = parameter_count(moe);
  EXPECT_EQ(count.feed_forward, moe.num_layers * (router + moe.num_experts * expert));
  EXPECT_EQ(count.active, parameter_count(dense).total + moe.num_layers * router);
  // All copies of all layers but the last run the router; the last layer its last copy.
  const double rows = static_cast<double>((moe.num_layers - 1) * moe.phd_copies + 1);
  const double expected =
      model_cost(dense, 64).forward_flops_per_token + rows * 2.0 * static_cast<double>(router);
  EXPECT_NEAR(model_cost(moe, 64).forward_flops_per_token, expected, 1e-9 * expected);
}

// HybridNorm, table 9: 6.9 billion parameters, 1.3 billion of them read by a token.
TEST(ModelCost, MoePresetHasItsPublishedSize) {
  const ParameterCount count = parameter_count(find_model_preset("hybridnorm-moe-1b-7b")->model);
  EXPECT_NEAR(static_cast<double>(count.total), 6.9e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(count.active), 1.3e9, 0.05e9);
}

TEST(ModelCost, OneCopyIsVanillaWithoutDeadRows) {
  const ModelPreset& preset = *find_model_preset("hybridnorm-151m");
  const ModelCost cost = model_cost(preset.model, preset.seq_length);
  EXPECT_EQ(cost.dead_row_flops, 0);
  EXPECT_EQ(cost.forward.attention_hidden, 0);
  EXPECT_NEAR(cost.forward_flops_per_token, cost.vanilla_forward_flops,
              1e-9 * cost.vanilla_forward_flops);
}

TEST(ModelCost, CopiesCostKTimesMinusDeadRowsPlusTheBand) {
  const ModelPreset& preset = *find_model_preset("phd-1.2b");
  const ModelCost cost = model_cost(preset.model, preset.seq_length);
  const double doubled = 2 * (cost.vanilla_forward_flops - cost.forward.head) + cost.forward.head;
  // attention_hidden counts live rows; the hidden keys the dead rows would see are none
  // (originals).
  EXPECT_NEAR(cost.forward_flops_per_token,
              doubled + cost.forward.attention_hidden - cost.dead_row_flops, 1e-9 * doubled);
}

}  // namespace
}  // namespace phalanx
