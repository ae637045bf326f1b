// Routes of rows to experts. Rows leave sorted by expert, hence by rank; they arrive as blocks
// [expert_tp rank, ep rank, local expert] and are then sorted by local expert.
#include "parallel/expert_parallel.h"

#include <cmath>
#include <numeric>

#include "parallel/regions.h"

namespace phalanx {
namespace {

int64_t sum_of(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

/// `total` over `parts`, as even as it goes.
std::vector<int64_t> even_split(int64_t total, int64_t parts) {
  std::vector<int64_t> split(static_cast<size_t>(parts), total / parts);
  for (int64_t i = 0; i < total % parts; ++i) ++split[static_cast<size_t>(i)];
  return split;
}

/// Sums of `parts` equal runs of `counts`.
std::vector<int64_t> sums_of_runs(std::span<const int64_t> counts, int64_t parts) {
  const size_t run = counts.size() / static_cast<size_t>(parts);
  std::vector<int64_t> sums;
  for (size_t begin = 0; begin < counts.size(); begin += run)
    sums.push_back(sum_of(counts.subspan(begin, run)));
  return sums;
}

/// Place of every arriving row. blocks [sources, experts] rows; sorted by expert, then by source.
std::vector<int32_t> order_by_expert(std::span<const int64_t> blocks,
                                     std::span<const int64_t> expert_rows) {
  const size_t experts = expert_rows.size();
  std::vector<int64_t> next(experts, 0);
  std::exclusive_scan(expert_rows.begin(), expert_rows.end(), next.begin(), int64_t{0});
  std::vector<int32_t> order;
  order.reserve(static_cast<size_t>(sum_of(expert_rows)));
  for (size_t block = 0; block < blocks.size(); ++block)
    for (int64_t i = 0; i < blocks[block]; ++i)
      order.push_back(static_cast<int32_t>(next[block % experts]++));
  return order;
}

std::vector<int64_t> times(std::span<const int64_t> counts, int64_t factor) {
  std::vector<int64_t> product(counts.begin(), counts.end());
  for (int64_t& count : product) count *= factor;
  return product;
}

}  // namespace

ExpertDispatcher::ExpertDispatcher(Backend& backend, const ExpertGroups& groups,
                                   int64_t num_experts)
    : ops_(backend),
      groups_(groups),
      num_experts_(num_experts),
      local_experts_(num_experts / groups.ep.size()) {
  check_usage(num_experts > 0 && num_experts % groups.ep.size() == 0, "num-experts ", num_experts,
              " is not divisible by expert-model-parallel-size ", groups.ep.size(),
              "; use a size that divides it");
}

// Rows of each [expert_tp rank, ep rank, local expert] that come here. What no rank writes (silent
// groups) stays as planned.
std::vector<int64_t> ExpertDispatcher::exchange_counts(const std::vector<int64_t>& sent) const {
  const int64_t ep = groups_.ep.size();
  const double planned = std::ceil((1.0 + kPlannedExcess) * static_cast<double>(sum_of(sent)));
  std::vector<int64_t> own = even_split(static_cast<int64_t>(planned), num_experts_);
  const std::vector<int64_t> one_each(static_cast<size_t>(ep), 1);
  groups_.ep.all_to_all(cpu_tensor(own.data(), {ep, local_experts_}),
                        cpu_tensor(sent.data(), {ep, local_experts_}), one_each, one_each);
  std::vector<int64_t> all;
  for (int i = 0; i < groups_.expert_tp.size(); ++i) all.insert(all.end(), own.begin(), own.end());
  groups_.expert_tp.all_gather(cpu_tensor(all.data(), {static_cast<int64_t>(all.size())}),
                               cpu_tensor(own.data(), {num_experts_}));
  return all;
}

// The download is the one synchronisation with the host per layer that dropless routing needs: the
// sizes of what follows, messages and products, come from these counts.
void ExpertDispatcher::route(Route& route, const Tensor& counts, const Tensor& experts,
                             Memory& memory) const {
  route.places = memory.saved.tensor("experts.places", experts.shape, DType::i32);
  ops_.sort_by_expert(route.places, counts, experts);
  std::vector<int64_t> sent = even_split(experts.numel(), num_experts_);
  ops_.download(sent.data(), counts);
  const std::vector<int64_t> blocks = exchange_counts(sent);

  const auto own = static_cast<size_t>(groups_.expert_tp.rank() * num_experts_);
  route.sent = sums_of_runs(sent, groups_.ep.size());
  route.received = sums_of_runs(std::span(blocks).subspan(own, static_cast<size_t>(num_experts_)),
                                groups_.ep.size());
  route.gathered = sums_of_runs(blocks, groups_.expert_tp.size());
  route.expert_rows.assign(static_cast<size_t>(local_experts_), 0);
  for (size_t i = 0; i < blocks.size(); ++i)
    route.expert_rows[i % route.expert_rows.size()] += blocks[i];
  const std::vector<int32_t> order = order_by_expert(blocks, route.expert_rows);
  route.order =
      memory.saved.tensor("experts.order", {static_cast<int64_t>(order.size()), 1}, DType::i32);
  ops_.upload(route.order, order.data());
}

ExpertDispatcher::Passage ExpertDispatcher::passage(const Tensor& of, const Route& route,
                                                    Memory& memory) const {
  const int64_t width = of.shape.back();
  const auto own = static_cast<size_t>(groups_.expert_tp.rank());
  const int64_t begin = sum_of(std::span(route.gathered).first(own));
  const int64_t choices = route.places.numel();
  Passage passage;
  passage.all = memory.scratch.tensor("experts.gathered", {route.rows(), width}, of.dtype);
  passage.sorted = memory.scratch.tensor("experts.sent", {choices, width}, of.dtype);
  passage.own = passage.all.slice(begin, begin + route.gathered[own]);
  passage.counts = times(route.gathered, width);
  return passage;
}

// [n, k], or [M, 1] where every choice has a value of its own.
Tensor ExpertDispatcher::places_of(const Route& route, int64_t rows) {
  return route.places.view({rows, rows == 0 ? 1 : route.places.numel() / rows});
}

void ExpertDispatcher::dispatch(const Tensor& y, const Tensor& x, const Route& route,
                                Memory& memory) const {
  const ArenaScope scope(memory.scratch);
  const Passage rows = passage(x, route, memory);
  ops_.permute_rows(rows.sorted, x, places_of(route, x.shape.rows()));
  DispatchRegion::forward(groups_.ep, rows.own, rows.sorted, {route.sent, route.received});
  groups_.expert_tp.all_gather_in_place(rows.all.view({rows.all.numel()}), rows.counts);
  ops_.permute_rows(y, rows.all, route.order);
}

// As dispatch from the last line to the first.
void ExpertDispatcher::collect(const Tensor& y, const Tensor& x, const Route& route, Memory& memory,
                               const Tensor& added) const {
  const ArenaScope scope(memory.scratch);
  const Passage rows = passage(x, route, memory);
  ops_.combine_rows(rows.all, x, route.order);
  groups_.expert_tp.reduce_scatter_in_place(rows.all.view({rows.all.numel()}), rows.counts);
  DispatchRegion::backward(groups_.ep, rows.sorted, rows.own, {route.sent, route.received});
  ops_.combine_rows(y, rows.sorted, places_of(route, y.shape.rows()), added);
}

}  // namespace phalanx
