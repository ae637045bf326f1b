// Whole-model gradients in f64 against central differences along random directions, for every norm
// scheme, every PHD mode and every option that changes the mathematics.
#include <gtest/gtest.h>

#include <ostream>

#include "tests/model/test_model.h"

namespace phalanx {
namespace {

using testing::random_batch;
using testing::TestModel;
using testing::tiny_config;

struct Case {
  std::string name;
  ModelConfig config;
  bool documents = false;
};

// GoogleTest would print the bytes.
void PrintTo(const Case& item, std::ostream* out) {
  *out << item.name;
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (const auto& [scheme, name] : EnumNames<NormScheme>::table) {
    Case item{.name = std::string("norm_") + std::string(name), .config = tiny_config()};
    item.config.norm_scheme = scheme;
    item.config.phd_copies = 2;
    list.push_back(item);
  }
  for (const auto& [mode, name] : EnumNames<PhdMode>::table)
    for (const int64_t copies : {1, 3}) {
      Case item{.name = "phd_" + std::string(name) + "_" + std::to_string(copies),
                .config = tiny_config()};
      item.config.phd = mode;
      item.config.phd_copies = copies;
      list.push_back(item);
    }
  const auto add = [&](const char* name, auto change, bool documents = false) {
    Case item{.name = name, .config = tiny_config(), .documents = documents};
    item.config.phd_copies = 2;
    change(item.config);
    list.push_back(item);
  };
  add("untied_z_loss", [](ModelConfig& c) {
    c.untie_embeddings_and_output_weights = true;
    c.z_loss_coeff = 0.01;
  });
  add("hidden_token_window_flattened_rope", [](ModelConfig& c) {
    c.phd_copies = 3;
    c.phd_window_unit = WindowUnit::hidden_tokens;
    c.phd_rope_position = CopyPosition::flattened;
  });
  add("sink_window", [](ModelConfig& c) {
    c.sparse_pattern = KeyPattern::sink_window;
    c.sparse_block = 2;
    c.sparse_window_blocks = 2;
    c.sparse_full_layers = 1;
  });
  add("strided", [](ModelConfig& c) {
    c.sparse_pattern = KeyPattern::strided;
    c.sparse_block = 2;
    c.sparse_stride_blocks = 3;
    c.sparse_full_layers = 1;
  });
  add("experts", [](ModelConfig& c) {
    c.num_experts = 4;
    c.moe_router_topk = 2;
    c.moe_ffn_hidden_size = 10;
  });
  add("one_layer", [](ModelConfig& c) { c.num_layers = 1; });
  add(
      "documents", [](ModelConfig&) {}, true);
  return list;
}

/// Two documents per sequence: positions restart, attention stays inside.
void add_documents(MicroBatch& batch) {
  for (int64_t s = 0; s < batch.positions; ++s)
    for (int64_t b = 0; b < batch.sequences; ++b)
      batch.position_ids.push_back(static_cast<int32_t>(s < 5 + b ? s : s - 5 - b));
  for (int64_t b = 0; b < batch.sequences; ++b)
    for (int64_t s = 0; s < batch.positions; ++s)
      batch.document_start.push_back(static_cast<int32_t>(s < 5 + b ? 0 : 5 + b));
}

class ModelGradient : public ::testing::TestWithParam<Case> {};

TEST_P(ModelGradient, EqualsCentralDifferences) {
  const ModelConfig& config = GetParam().config;
  TestModel model(config, {.positions = 12, .sequences = 2}, DType::f64);
  std::vector<MicroBatch> batches{random_batch(12, 2, config.vocab_size, 1),
                                  random_batch(12, 2, config.vocab_size, 2)};
  if (GetParam().documents) add_documents(batches[0]);
  // Norm weights start at 1 and small models barely feel them: shake every weight first.
  auto* weights = model.parameters.flat_value().as<double>();
  const int64_t n = model.parameters.numel();
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < n; ++i) weights[i] += 0.2 * normal(random);

  model.step(batches);
  const auto* gradient = model.parameters.flat_gradient().as<double>();
  const std::vector<double> analytic(gradient, gradient + n);
  double squares = 0;
  for (const double g : analytic) squares += g * g;
  ASSERT_GT(squares, 0.0);
  for (int trial = 0; trial < 2; ++trial) {
    std::vector<double> direction(static_cast<size_t>(n));
    double slope = 0;
    for (size_t i = 0; i < direction.size(); ++i) {
      direction[i] = normal(random);
      slope += direction[i] * analytic[i];
    }
    const double h = 1e-5;
    const auto loss_at = [&](double t) {
      for (int64_t i = 0; i < n; ++i) weights[i] += t * direction[static_cast<size_t>(i)];
      const double loss = model.step(batches);
      for (int64_t i = 0; i < n; ++i) weights[i] -= t * direction[static_cast<size_t>(i)];
      return loss;
    };
    const double numeric = (loss_at(h) - loss_at(-h)) / (2 * h);
    // Truncation is h^2 times the third derivative and rounding eps / h: both stay far below 1e-6
    // of |gradient|, the natural size of a slope along a random direction.
    EXPECT_NEAR(slope, numeric, 1e-6 * (1 + std::sqrt(squares)));
  }
}

INSTANTIATE_TEST_SUITE_P(All, ModelGradient, ::testing::ValuesIn(cases()), [](const auto& info) {
  std::string name = info.param.name;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
});

}  // namespace
}  // namespace phalanx
