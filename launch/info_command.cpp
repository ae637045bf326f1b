// `phalanx info`: what a model and a layout cost, without training anything.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <tuple>

#include "core/layout_validate.h"
#include "core/model/model_cost.h"
#include "core/model/problems.h"
#include "core/train/memory_options.h"
#include "core/train/pipeline_report.h"
#include "core/train/run_setup.h"
#include "kernels/make_backend.h"
#include "launch/commands.h"
#include "launch/options.h"
#include "launch/run_device.h"
#include "parallel/device_mesh.h"

namespace phalanx {
namespace {

constexpr char kUsage[] =
    "usage: phalanx info [--model NAME] [options]\n"
    "Parameters, FLOPs and memory of a model in a layout.";

void print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
}

struct Info {
  RunConfig config;
  InfoOptions options;
  ParameterCount parameters = {};
  ModelCost cost = {};
  MemoryNeeds memory = {};  // of the pipeline rank that needs most
  int64_t pipeline_rank = 0;
  int64_t data_parallel = 1;
};

Info gather(const RunConfig& config, const InfoOptions& options) {
  Info info{.config = config, .options = options};
  info.parameters = parameter_count(config.model);
  info.cost = model_cost(config.model, config.data.seq_length);
  const DeviceMesh mesh(config.parallel, options.world_size);
  info.data_parallel = mesh.size(MeshAxis::dp);
  const Device device = chosen_device(config.training.device, num_cuda_devices());
  std::tie(info.memory, info.pipeline_rank) = measure_memory(config, options.world_size, device);
  return info;
}

std::string parameter_text(const ParameterCount& p) {
  const auto row = [&](const char* name, int64_t count) {
    return fmt::format("  {:<14} {:>15}  {:5.1f} %\n", name, count,
                       100.0 * static_cast<double>(count) / static_cast<double>(p.total));
  };
  std::string text = "parameters\n" + row("embedding", p.embedding) +
                     row("attention", p.attention) + row("feed-forward", p.feed_forward) +
                     row("norms", p.norms) + row("head", p.head) + row("total", p.total);
  if (p.active != p.total) text += row("active", p.active);
  return text;
}

std::string flops_text(const Info& info) {
  const ModelCost& cost = info.cost;
  const double copies = static_cast<double>(info.config.model.phd_copies);
  const auto row = [&](const char* name, double flops) {
    return fmt::format("  {:<34} {:12.6g}  {:12.6g}\n", name, flops, flops / copies);
  };
  std::string text = fmt::format("FLOPs, mean over {} positions, K = {}\n  {:<34} {:>12}  {:>12}\n",
                                 info.config.data.seq_length, info.config.model.phd_copies, "",
                                 "per token", "per copy");
  text += row("linear layers", cost.forward.linear);
  text += row("attention to originals", cost.forward.attention_original);
  text += row("attention to hidden copies", cost.forward.attention_hidden);
  text += row("head (last copy only)", cost.forward.head);
  text += row("forward", cost.forward_flops_per_token);
  text += row("backward", cost.backward_flops_per_token);
  text += row("training (forward + backward)",
              cost.forward_flops_per_token + cost.backward_flops_per_token);
  text += fmt::format("  dead rows of the last layer left out: {:.6g} per token, forward\n",
                      cost.dead_row_flops);
  text += fmt::format("  forward over the same model with K = 1: {:.3f} x\n",
                      cost.forward_flops_per_token / cost.vanilla_forward_flops);
  return text;
}

std::string layout_text(const Info& info) {
  const DeviceMesh mesh(info.config.parallel, info.options.world_size);
  const std::string text =
      pipeline_text({.model = info.config.model,
                     .parallel = info.config.parallel,
                     .seq_length = info.config.data.seq_length,
                     .num_micro_batches = num_micro_batches(info.config, mesh)});
  return text.empty() ? "" : text + "\n";
}

std::string memory_text(const Info& info) {
  return fmt::format(
      "{} ranks, {} data-parallel, micro-batch {}, {}; pipeline rank {} of {} needs most\n{}\n",
      info.options.world_size, info.data_parallel, info.config.training.micro_batch_size,
      enum_name(info.config.training.precision), info.pipeline_rank,
      info.config.parallel.pipeline_model_parallel_size, memory_table(info.memory));
}

nlohmann::ordered_json memory_json(const MemoryNeeds& m) {
  return {{"weights", m.weights},           {"gradients", m.gradients}, {"optimizer", m.optimizer},
          {"activations", m.activations},   {"scratch", m.scratch},     {"workspace", m.workspace},
          {"on_device", m.on_device()},     {"on_host", m.on_host()},   {"total", m.total()},
          {"device", device_name(m.device)}};
}

nlohmann::ordered_json info_json(const Info& info) {
  const ParameterCount& p = info.parameters;
  const ModelCost& c = info.cost;
  return {{"parameters",
           {{"embedding", p.embedding},
            {"attention", p.attention},
            {"feed_forward", p.feed_forward},
            {"norms", p.norms},
            {"head", p.head},
            {"total", p.total},
            {"active", p.active}}},
          {"copies", info.config.model.phd_copies},
          {"seq_length", info.config.data.seq_length},
          {"flops_per_token",
           {{"linear", c.forward.linear},
            {"attention_original", c.forward.attention_original},
            {"attention_hidden", c.forward.attention_hidden},
            {"head", c.forward.head},
            {"forward", c.forward_flops_per_token},
            {"backward", c.backward_flops_per_token},
            {"dead_rows_left_out", c.dead_row_flops},
            {"forward_vanilla", c.vanilla_forward_flops}}},
          {"world_size", info.options.world_size},
          {"data_parallel", info.data_parallel},
          {"pipeline_rank", info.pipeline_rank},
          {"memory_bytes_per_rank", memory_json(info.memory)}};
}

std::string list_text() {
  std::string text;
  for (const auto& preset : model_presets())
    text += fmt::format("{:<22} {}\n", preset.name, preset.description);
  return text;
}

}  // namespace

int run_info(const Arguments& arguments) {
  RunConfig config;
  SourceOptions sources;
  InfoOptions options;
  OptionTable table;
  visit_fields(options, table);
  visit_fields(sources, table);
  visit_fields(config, table);
  if (wants_help(arguments)) {
    print(help_text(kUsage, table,
                    {"Info", "Sources", "Model", "Norm placement", "PHD-Transformer",
                     "Sparse attention (LongGen)", "Mixture of experts", "Parallelism", "Data",
                     "Training", "Tokenizer"}));
    return 0;
  }
  auto problems = apply_options(arguments, table, config);
  append(problems, validate(config.model, config.data.seq_length));
  append(problems, validate(config.parallel, options.world_size));
  append(problems, validate_layout(config, options.world_size));
  throw_problems(problems);
  if (options.list) {
    print(list_text());
    return 0;
  }
  // Shapes of the papers are described without their tokenizers at hand.
  if (config.model.vocab_size == 0)
    config.model.vocab_size = make_tokenizer(config.tokenizer)->vocab_size();
  const Info info = gather(config, options);
  if (options.json)
    print(info_json(info).dump(2) + "\n");
  else
    print(parameter_text(info.parameters) + "\n" + flops_text(info) + "\n" + layout_text(info) +
          memory_text(info));
  return 0;
}

}  // namespace phalanx
