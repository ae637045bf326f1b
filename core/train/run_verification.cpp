// Shrinks, compares, and says it in words.
#include "core/train/run_verification.h"

#include <fmt/format.h>

#include <chrono>

#include "core/train/shrink_layout.h"

namespace phalanx {
namespace {

std::string layout_text(const ParallelConfig& p, int64_t world_size) {
  std::string text = fmt::format("{} rank(s)", world_size);
  const auto add = [&](const char* name, int64_t size) {
    if (size > 1) text += fmt::format(", {} {}", name, size);
  };
  add("dp", DeviceMesh(p, world_size).size(MeshAxis::dp));
  add("tp", p.tensor_model_parallel_size);
  if (p.sequence_parallel) text += ", sequence parallel";
  add("cp", p.context_parallel_size);
  add("pp", p.pipeline_model_parallel_size);
  add("virtual stages", p.num_virtual_stages_per_pipeline_rank);
  add("ep", p.expert_model_parallel_size);
  add("expert_tp", p.expert_tensor_parallel_size);
  return text;
}

std::string copy_text(const RunConfig& small) {
  const ModelConfig& m = small.model;
  return fmt::format(
      " shrunken copy: {} layers, hidden {}, heads {} on {}, {} copies, {} positions, {} "
      "sequences\n",
      m.num_layers, m.hidden_size, m.num_attention_heads, m.query_groups(), m.copies(),
      small.data.seq_length, small.training.global_batch_size);
}

std::string difference_text(const LayoutDifference& difference) {
  std::string text =
      fmt::format(" step {}: {} differs by {:.3e}; rounding explains {:.3e}\n", difference.step + 1,
                  difference.what, difference.difference, difference.tolerance);
  if (!difference.tensor.empty() && difference.tensor != difference.what)
    text += fmt::format(" first tensor: {}\n", difference.tensor);
  return text + fmt::format(" wrong: {}\n", difference.axis);
}

std::string statistics_text(const LayoutStatistics& statistics, const LayoutCase& layout) {
  const std::string nearest =
      statistics.nearest.empty()
          ? "the same bits"
          : fmt::format(
                "largest relative difference {:.1e}; nearest to its tolerance: {} ({:.1f} % "
                "of it)",
                statistics.largest_relative, statistics.nearest,
                100.0 * statistics.nearest_tolerance);
  return fmt::format(
      " compared after each of {} steps: loss, gradient norm, gradients and weights of {} tensors\n"
      " {}\n",
      layout.num_steps, statistics.num_tensors, nearest);
}

}  // namespace

VerificationResult run_verification(const RunConfig& config, Backend& backend, int64_t world_size,
                                    const GroupsOfMesh& groups_of) {
  const auto begin = std::chrono::steady_clock::now();
  const RunConfig small = shrink_config(config, world_size);
  const LayoutCase layout = layout_case(small);
  const LayoutReport report = verify_layout(layout, backend, world_size, groups_of);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const bool same = report.differences.empty();
  std::string text = fmt::format("layout {}: {}\n", same ? "verified" : "NOT the same as one rank",
                                 layout_text(config.parallel, world_size));
  text += copy_text(small);
  text += same ? statistics_text(report.statistics, layout)
               : difference_text(report.differences.front());
  text += fmt::format(" the layout was checked in fp32; the run computes in {}\n {:.1f} s\n",
                      enum_name(config.training.precision), seconds);
  return {.same = same, .text = text};
}

}  // namespace phalanx
