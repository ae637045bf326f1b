// Divisors, and the rule that ranks them.
#include "cluster/study_layouts.h"

#include <fmt/format.h>

#include "cluster/study_traffic.h"
#include "core/model/model_cost.h"
#include "core/train/memory_options.h"
#include "core/train/pipeline_report.h"

namespace phalanx {
namespace {

std::vector<int64_t> divisors(int64_t whole) {
  std::vector<int64_t> list;
  for (int64_t i = 1; i <= whole; ++i)
    if (whole % i == 0) list.push_back(i);
  return list;
}

}  // namespace

std::vector<std::string> candidate_layouts(const ModelConfig& model, int64_t nodes,
                                           int64_t ranks_per_node) {
  const int64_t world = nodes * ranks_per_node;
  std::vector<std::string> layouts;
  for (const int64_t tp : divisors(ranks_per_node))
    for (const int64_t pp : divisors(world / tp))
      for (const int64_t cp : divisors(world / tp / pp)) {
        if (pp > model.num_layers) continue;
        std::string layout = fmt::format("tp{} pp{}", tp, pp);
        if (cp > 1) layout += fmt::format(" cp{}", cp);
        if (tp > 1) layout += " sp";
        layouts.push_back(layout);
        if (model.num_experts == 0) continue;
        for (const int64_t ep : divisors(world / pp))
          if (ep > 1) layouts.push_back(fmt::format("{} ep{}", layout, ep));
      }
  return layouts;
}

double layout_cost(const RunConfig& config, int64_t nodes, int64_t ranks_per_node) {
  constexpr double kFlopsPerByteBetweenNodes = 4000;
  constexpr double kFlopsPerByteInside = 400;
  const int64_t world = nodes * ranks_per_node;
  const DeviceMesh mesh(config.parallel, world);
  const ModelCost cost = model_cost(config.model, config.data.seq_length);
  const double tokens =
      static_cast<double>(config.training.global_batch_size * config.data.seq_length);
  const double flops = tokens * (cost.forward_flops_per_token + cost.backward_flops_per_token) /
                       static_cast<double>(world);
  const double bubble =
      predicted_bubble_fraction({.model = config.model,
                                 .parallel = config.parallel,
                                 .seq_length = config.data.seq_length,
                                 .num_micro_batches = num_micro_batches(config, mesh)});
  double total = flops / (1 - bubble);
  for (const StepBytes& item : predict_step_bytes(config, world)) {
    const bool inside = nodes == 1 || item.group == "tp";
    total += static_cast<double>(item.bytes.value_or(0)) *
             (inside ? kFlopsPerByteInside : kFlopsPerByteBetweenNodes);
  }
  return total;
}

}  // namespace phalanx
