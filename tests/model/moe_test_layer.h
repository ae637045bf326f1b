// A MoeLayer alone for tests: its parameters on one rank or on a rank of a mesh, and the naive f64
// mixture it must equal.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "core/model/moe_layer.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/process_groups.h"
#include "tests/parallel/parallel_helpers.h"

namespace phalanx::test {

inline ModelConfig moe_config() {
  ModelConfig config;
  config.num_layers = 3;
  config.hidden_size = 12;
  config.num_experts = 8;
  config.moe_router_topk = 2;
  config.moe_ffn_hidden_size = 6;
  return config;
}

constexpr double kBalanceScale = 0.7;
constexpr double kZScale = 0.3;

/// A layer with its own store, backend and arenas.
class MoeTestLayer {
 public:
  MoeTestLayer(const ModelConfig& model, ProcessGroups& groups, DType compute = DType::f64,
               SequenceParallel mode = SequenceParallel::on)
      : config(model),
        dtype(compute),
        layer(LayerContext{.config = config,
                           .layer = 1,
                           .parallel = {store, backend, *groups.tp, mode},
                           .cp = *groups.cp,
                           .experts = {.ep = *groups.ep, .expert_tp = *groups.expert_tp}}) {
    store.allocate(backend, dtype);
    store.initialise(backend, 5);
    // Standard deviations of 1 / sqrt(2.5 H) hardly tell experts apart.
    backend.scale(store.flat_value(), 4.0);
    sums = cpu_tensor(sum_values, {2});
  }

  RouterLoss loss() const {
    return {.balance_scale = kBalanceScale, .z_scale = kZScale, .sums = sums};
  }
  /// Adds to gradients and sums.
  void run(const Tensor& y, const Tensor& dx, const Tensor& x, const Tensor& dy) {
    arenas.saved.clear();
    layer.forward(y, x, saved, arenas.memory, loss());
    layer.backward(dx, dy, saved, arenas.memory, loss());
  }

  ModelConfig config;
  DType dtype;
  CpuBackend backend{1};
  ParameterStore store;
  MoeLayer layer;
  TestMemory arenas;
  MoeLayer::Saved saved;
  double sum_values[2] = {0, 0};
  Tensor sums;
};

using Weights = std::map<std::string, std::vector<double>>;

inline Weights weights_of(const ParameterStore& store) {
  Weights weights;
  for (int64_t i = 0; i < store.size(); ++i)
    weights[store[i].spec.name] = to_doubles(store[i].value);
  return weights;
}

/// <row of matrix, x>.
inline double row_dot(const std::vector<double>& matrix, int64_t row, const double* x, int64_t n) {
  return std::inner_product(x, x + n, matrix.begin() + row * n, 0.0);
}

struct Mixture {
  std::vector<double> y;
  double balance = 0.0;
  double z = 0.0;
};

/// down(silu(gate x) * up x) of one expert.
inline std::vector<double> naive_expert(const ModelConfig& c, const Weights& weights,
                                        int64_t expert, const double* x) {
  const std::string prefix = fmt::format("layers.01.mlp.experts.{:02d}.", expert);
  const int64_t h = c.hidden_size, f = c.moe_ffn_hidden_size;
  std::vector<double> act, y;
  for (int64_t i = 0; i < f; ++i) {
    const double gate = row_dot(weights.at(prefix + "gate.weight"), i, x, h);
    act.push_back(gate / (1 + std::exp(-gate)) *
                  row_dot(weights.at(prefix + "up.weight"), i, x, h));
  }
  for (int64_t i = 0; i < h; ++i)
    y.push_back(row_dot(weights.at(prefix + "down.weight"), i, act.data(), f));
  return y;
}

/// Every row through its top-k experts, from the formulas alone.
inline Mixture naive_mixture(const ModelConfig& c, const Weights& weights,
                             const std::vector<double>& x) {
  const int64_t h = c.hidden_size, experts = c.num_experts;
  const auto rows = static_cast<int64_t>(x.size()) / h;
  Mixture result{.y = std::vector<double>(x.size(), 0.0)};
  std::vector<double> count(static_cast<size_t>(experts), 0.0), mass = count;
  for (int64_t t = 0; t < rows; ++t) {
    std::vector<double> p;
    for (int64_t e = 0; e < experts; ++e)
      p.push_back(
          std::exp(row_dot(weights.at("layers.01.mlp.router.weight"), e, &x[size_t(t * h)], h)));
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    result.z += std::log(total) * std::log(total) / static_cast<double>(rows);
    std::vector<int64_t> order(p.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return p[size_t(a)] > p[size_t(b)]; });
    for (size_t e = 0; e < p.size(); ++e) mass[e] += p[e] / total / static_cast<double>(rows);
    for (int64_t j = 0; j < c.moe_router_topk; ++j) {
      const auto e = size_t(order[size_t(j)]);
      count[e] += 1.0 / static_cast<double>(rows * c.moe_router_topk);
      const auto out = naive_expert(c, weights, order[size_t(j)], &x[size_t(t * h)]);
      for (int64_t i = 0; i < h; ++i) result.y[size_t(t * h + i)] += p[e] / total * out[size_t(i)];
    }
  }
  for (size_t e = 0; e < count.size(); ++e)
    result.balance += static_cast<double>(experts) * count[e] * mass[e];
  return result;
}

}  // namespace phalanx::test
