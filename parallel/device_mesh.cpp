// Rank arithmetic of the two views, and what is wrong with a parallel configuration.
#include "parallel/device_mesh.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr std::array kDenseView{MeshAxis::pp, MeshAxis::dp, MeshAxis::cp, MeshAxis::tp};
constexpr std::array kExpertView{MeshAxis::pp, MeshAxis::expert_dp, MeshAxis::ep,
                                 MeshAxis::expert_tp};
using View = std::array<MeshAxis, 4>;

bool has(const View& view, MeshAxis axis) {
  return std::find(view.begin(), view.end(), axis) != view.end();
}

struct SizeOption {
  const char* name;
  int64_t value;
};

/// Adds a problem unless the product of `options` divides `whole` ranks. The first option that
/// exceeds 1 and whose change alone can help is the one to change.
void check_product(std::vector<std::string>& problems, std::span<const SizeOption> options,
                   int64_t whole, const char* whole_name) {
  int64_t product = 1;
  std::string text;
  for (const SizeOption& option : options) {
    // Stops before the product leaves int64: it cannot divide `whole` any more.
    product = product > whole ? product : product * option.value;
    if (option.value != 1)
      text += fmt::format("{}{} {}", text.empty() ? "" : " times ", option.name, option.value);
  }
  if (product <= whole && whole % product == 0) return;
  for (const SizeOption& option : options) {
    int64_t others = 1;
    for (const SizeOption& other : options)
      if (other.name != option.name) others = others > whole ? others : others * other.value;
    if (option.value == 1 || others > whole || whole % others != 0) continue;
    problems.push_back(fmt::format("{} does not divide {} {}; nearest {} is {}", text, whole_name,
                                   whole, option.name,
                                   nearest_divisor(option.value, whole / others)));
    return;
  }
  std::string advice;
  for (const SizeOption& option : options)
    advice += fmt::format("{}{} 1", advice.empty() ? "" : ", ", option.name);
  problems.push_back(
      fmt::format("{} does not divide {} {}; start from {}", text, whole_name, whole, advice));
}

}  // namespace

int64_t nearest_divisor(int64_t wanted, int64_t whole) {
  int64_t best = 1;
  for (int64_t low = 1; low * low <= whole; ++low) {
    if (whole % low != 0) continue;
    for (const int64_t divisor : {low, whole / low}) {
      const int64_t distance = std::abs(divisor - wanted);
      const int64_t best_distance = std::abs(best - wanted);
      if (distance < best_distance || (distance == best_distance && divisor < best)) best = divisor;
    }
  }
  return best;
}

// Divided step by step: a product of sizes may leave int64.
int64_t data_parallel_size(const ParallelConfig& config, int64_t world_size) {
  int64_t data_ranks = world_size;
  for (const int64_t size : {config.tensor_model_parallel_size, config.pipeline_model_parallel_size,
                             config.context_parallel_size})
    data_ranks = size > 0 ? data_ranks / size : 1;
  return std::max<int64_t>(1, data_ranks);
}

std::vector<std::string> validate(const ParallelConfig& config, int64_t world_size) {
  const SizeOption dense[] = {{"tensor-model-parallel-size", config.tensor_model_parallel_size},
                              {"pipeline-model-parallel-size", config.pipeline_model_parallel_size},
                              {"context-parallel-size", config.context_parallel_size}};
  const SizeOption expert[] = {{"expert-model-parallel-size", config.expert_model_parallel_size},
                               {"expert-tensor-parallel-size", config.expert_tensor_parallel_size}};
  std::vector<std::string> problems;
  const auto need_positive = [&](const char* name, int64_t value) {
    if (value < 1) problems.push_back(fmt::format("{} {} is below 1; nearest is 1", name, value));
  };
  need_positive("number of ranks", world_size);
  for (const SizeOption& option : dense) need_positive(option.name, option.value);
  for (const SizeOption& option : expert) need_positive(option.name, option.value);
  need_positive("ddp-bucket-size", config.ddp_bucket_size);
  const bool sizes_positive =
      world_size >= 1 &&
      std::all_of(std::begin(dense), std::end(dense), [](auto& o) { return o.value >= 1; }) &&
      std::all_of(std::begin(expert), std::end(expert), [](auto& o) { return o.value >= 1; });
  if (!sizes_positive) return problems;

  check_product(problems, dense, world_size, "the number of ranks");
  const int64_t stages = config.pipeline_model_parallel_size;
  if (world_size % stages == 0)
    check_product(problems, expert, world_size / stages, "the ranks of a pipeline stage,");
  return problems;
}

DeviceMesh::DeviceMesh(const ParallelConfig& config, int64_t world_size)
    : world_size_(world_size), sizes_{} {
  std::string text;
  for (const std::string& problem : validate(config, world_size))
    text += (text.empty() ? "" : "\n") + problem;
  check_usage(text.empty(), text);

  const auto size_of = [&](MeshAxis axis) -> int64_t& { return sizes_[static_cast<size_t>(axis)]; };
  size_of(MeshAxis::pp) = config.pipeline_model_parallel_size;
  size_of(MeshAxis::cp) = config.context_parallel_size;
  size_of(MeshAxis::tp) = config.tensor_model_parallel_size;
  size_of(MeshAxis::ep) = config.expert_model_parallel_size;
  size_of(MeshAxis::expert_tp) = config.expert_tensor_parallel_size;
  const int64_t stage_ranks = world_size / config.pipeline_model_parallel_size;
  size_of(MeshAxis::dp) = stage_ranks / (size(MeshAxis::cp) * size(MeshAxis::tp));
  size_of(MeshAxis::expert_dp) = stage_ranks / (size(MeshAxis::ep) * size(MeshAxis::expert_tp));
}

int64_t DeviceMesh::size(MeshAxis axis) const {
  return sizes_[static_cast<size_t>(axis)];
}

int64_t DeviceMesh::coordinate(int64_t rank, MeshAxis axis) const {
  check(0 <= rank && rank < world_size_, "rank ", rank, " is not one of ", world_size_);
  const View& view = has(kDenseView, axis) ? kDenseView : kExpertView;
  int64_t stride = 1;
  for (size_t i = view.size(); view[--i] != axis;) stride *= size(view[i]);
  return rank / stride % size(axis);
}

std::vector<int64_t> DeviceMesh::group_of(int64_t rank, const std::vector<MeshAxis>& axes) const {
  check(0 <= rank && rank < world_size_, "rank ", rank, " is not one of ", world_size_);
  const auto inside = [&](const View& view) {
    return std::all_of(axes.begin(), axes.end(), [&](MeshAxis axis) { return has(view, axis); });
  };
  check(inside(kDenseView) || inside(kExpertView),
        "a group spans axes of the dense or of the expert view, not of both");
  const View& view = inside(kDenseView) ? kDenseView : kExpertView;
  // Grown from the innermost axis outwards: every new coordinate repeats the ranks so far at the
  // next stride, so that the list stays ascending.
  std::vector<int64_t> ranks{0};
  int64_t stride = 1;
  for (size_t i = view.size(); i-- > 0; stride *= size(view[i])) {
    const bool spanned = std::find(axes.begin(), axes.end(), view[i]) != axes.end();
    const size_t count = ranks.size();
    if (!spanned)
      for (int64_t& member : ranks) member += coordinate(rank, view[i]) * stride;
    for (int64_t c = 1; spanned && c < size(view[i]); ++c)
      for (size_t j = 0; j < count; ++j) ranks.push_back(ranks[j] + c * stride);
  }
  return ranks;
}

}  // namespace phalanx
