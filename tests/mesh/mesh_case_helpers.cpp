// Reads lines of words into layouts.
#include <algorithm>
#include <cctype>
#include <sstream>

#include "tests/mesh/mesh_case.h"

namespace phalanx::test {
namespace {

ModelConfig base_model() {
  ModelConfig model;
  model.num_layers = 4;
  model.hidden_size = 16;
  model.ffn_hidden_size = 24;
  model.num_attention_heads = 8;
  model.num_query_groups = 4;
  model.kv_channels = 4;
  model.vocab_size = 29;
  model.make_vocab_size_divisible_by = 8;
  model.z_loss_coeff = 1e-3;
  model.phd_copies = 2;
  model.phd_window = 3;
  model.phd_chunk = 4;
  return model;
}

void set_model(const std::string& word, LayoutCase& layout) {
  ModelConfig& model = layout.model;
  if (word == "cswa2") return;
  if (word == "hybrid") {
    model.phd_copies = 1;
  } else if (word == "swa3") {
    model.phd = PhdMode::swa;
    model.phd_copies = 3;
    model.norm_scheme = NormScheme::pre_norm;
  } else if (word == "naive2") {
    model.phd = PhdMode::naive;
    model.norm_scheme = NormScheme::pre_qk_norm;
  } else if (word == "moe") {
    model.num_experts = 8;
    model.moe_router_topk = 3;
    model.moe_ffn_hidden_size = 16;
    model.untie_embeddings_and_output_weights = true;
  } else if (word == "sparse") {
    model.sparse_pattern = KeyPattern::sink_window;
    model.sparse_block = 2;
    model.sparse_window_blocks = 2;
    model.sparse_full_layers = 1;
  } else if (word == "olmo2") {
    model.norm_scheme = NormScheme::olmo2;
  } else if (word == "untied") {
    model.untie_embeddings_and_output_weights = true;
  } else if (word == "documents") {
    layout.documents = true;
  } else {
    fail("no model is called ", word);
  }
}

int64_t number_after(const std::string& word, const std::string& key) {
  return std::stoll(word.substr(key.size()));
}

bool starts_with_size(const std::string& word, const std::string& key) {
  return word.size() > key.size() && word.compare(0, key.size(), key) == 0 &&
         std::isdigit(static_cast<unsigned char>(word[key.size()])) != 0;
}

bool set_size(const std::string& word, LayoutCase& layout, int64_t& dp) {
  ParallelConfig& p = layout.parallel;
  const std::pair<const char*, int64_t*> sizes[] = {{"tp", &p.tensor_model_parallel_size},
                                                    {"cp", &p.context_parallel_size},
                                                    {"pp", &p.pipeline_model_parallel_size},
                                                    {"ep", &p.expert_model_parallel_size},
                                                    {"etp", &p.expert_tensor_parallel_size},
                                                    {"vp", &p.num_virtual_stages_per_pipeline_rank},
                                                    {"kv", &layout.model.num_query_groups},
                                                    {"layers", &layout.model.num_layers},
                                                    {"dp", &dp}};
  for (const auto& [key, target] : sizes) {
    if (!starts_with_size(word, key)) continue;
    *target = number_after(word, key);
    return true;
  }
  return false;
}

void set_word(const std::string& word, LayoutCase& layout, int64_t& dp) {
  ParallelConfig& p = layout.parallel;
  if (set_size(word, layout, dp)) return;
  if (word == "sp") {
    p.sequence_parallel = true;
  } else if (word == "gpipe") {
    p.pipeline_schedule = PipelineScheduleKind::gpipe;
  } else if (word == "zb") {
    p.pipeline_schedule = PipelineScheduleKind::zero_bubble;
  } else if (word == "zero3") {
    p.data_parallel_sharding_strategy = DataParallelSharding::optim_grads_params;
  } else if (word.starts_with("recompute=")) {
    p.recompute = {word.substr(10)};
  } else if (word.starts_with("layout=")) {
    p.pipeline_layout = word.substr(7);
  } else {
    fail("no word of a layout is called ", word);
  }
}

}  // namespace

MeshCase::MeshCase(const std::string& line) : text(line) {
  layout.model = base_model();
  layout.shape = {.positions = 32, .sequences = 1};
  layout.optimizer.adam_eps = 1e-4;        // updates stay smooth where gradients are almost zero
  layout.parallel.ddp_bucket_size = 1500;  // several buckets
  const size_t colon = line.find(':');
  check(colon != std::string::npos, "a layout needs a model before a colon: ", line);
  set_model(line.substr(0, colon), layout);
  int64_t dp = 1;
  std::istringstream words(line.substr(colon + 1));
  for (std::string word; words >> word;) set_word(word, layout, dp);
  const ParallelConfig& p = layout.parallel;
  world_size =
      dp * p.tensor_model_parallel_size * p.context_parallel_size * p.pipeline_model_parallel_size;
  // Two pipelines full where the pipeline is the only thing that needs them; four have every kind
  // of uneven mask.
  const int64_t pp = p.pipeline_model_parallel_size;
  layout.num_micro_batches = std::max<int64_t>(4, dp > 1 ? dp * pp : 2 * pp);
}

RunConfig MeshCase::run_config() const {
  RunConfig config{
      .model = layout.model, .optimizer = layout.optimizer, .parallel = layout.parallel};
  config.data.mock_data = true;
  config.data.seq_length = layout.shape.positions;
  config.training.run_dir = "run";
  config.training.train_iters = layout.num_steps;
  config.training.micro_batch_size = layout.shape.sequences;
  config.training.global_batch_size = layout.num_micro_batches * layout.shape.sequences;
  return config;
}

std::string MeshCase::name() const {
  std::string result;
  for (const char c : text)
    if (std::isalnum(static_cast<unsigned char>(c)) != 0)
      result += c;
    else if (!result.empty() && result.back() != '_')
      result += '_';
  return result;
}

}  // namespace phalanx::test
