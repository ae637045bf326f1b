// Divisors, and the rule that ranks them.
#include "cluster/study_layouts.h"

#include <fmt/format.h>

#include <numeric>

#include "cluster/study_traffic.h"
#include "core/model/model_cost.h"
#include "core/train/memory_options.h"
#include "core/train/pipeline_report.h"
#include "core/train/run_setup.h"

namespace phalanx {
namespace {

std::vector<int64_t> divisors(int64_t whole) {
  std::vector<int64_t> list;
  for (int64_t i = 1; i <= whole; ++i)
    if (whole % i == 0) list.push_back(i);
  return list;
}

/// Bytes of the experts' rows that leave a rank in a step if the router spreads them evenly: each
/// choice of each row goes there and back, forwards and backwards, and its weight there and back.
double even_routing_bytes(const RunConfig& config, int64_t world) {
  const ModelConfig& model = config.model;
  const auto ep = static_cast<double>(config.parallel.expert_model_parallel_size);
  const DType dtype = compute_dtype(config.training.precision);
  const int64_t choice =
      4 * model.hidden_size * dtype_bytes(dtype) + 2 * dtype_bytes(accumulator_dtype(dtype));
  const int64_t rows = config.training.global_batch_size * config.data.seq_length *
                       (model.copies() * (model.num_layers - 1) + 1);
  return static_cast<double>(rows * model.moe_router_topk * choice) / static_cast<double>(world) *
         (ep - 1) / ep;
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
        for (const int64_t ep : divisors(std::gcd(world / pp, model.num_experts)))
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
  const int64_t expert_ranks = mesh.size(MeshAxis::ep) * mesh.size(MeshAxis::expert_tp);
  if (config.model.num_experts > 0)
    total += even_routing_bytes(config, world) *
             (ranks_per_node % expert_ranks == 0 ? kFlopsPerByteInside : kFlopsPerByteBetweenNodes);
  return total;
}

}  // namespace phalanx
