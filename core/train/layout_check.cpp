// Runs both systems on the same batches and compares them piece by piece: every rank compares what
// its optimizer shards own, so that nothing is gathered.
#include "core/train/layout_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace phalanx {
namespace {

/// Rounding of a sum of `terms` products in another order, against its largest value. c covers the
/// layers that a value passes through.
constexpr double kRoundingFactor = 16.0;
/// Roundings of one update of a weight: moments, decay, step and sum.
constexpr double kUpdateRoundings = 16.0;

/// Batches of random ids, the same on every rank. Targets are masked unevenly: some sequences have
/// few, one none.
MicroBatch random_micro_batch(const LayoutCase& which, int64_t step, int64_t index) {
  const Philox random(which.seed, fmt::format("layout check {} {}", step, index));
  const int64_t s = which.shape.positions;
  const int64_t b = which.shape.sequences;
  MicroBatch batch{.positions = s, .sequences = b};
  const auto draw = [&](int64_t i, int64_t below) {
    return static_cast<int64_t>(random.uniform(static_cast<uint64_t>(i)) *
                                static_cast<double>(below));
  };
  for (int64_t i = 0; i < s * b; ++i) {
    batch.tokens.push_back(static_cast<int32_t>(draw(2 * i, which.model.vocab_size)));
    const bool late_half_masked = index % 3 == 1 && i / b >= s / 2;
    const bool masked = index % 4 == 3 || late_half_masked || i % 5 == 2;
    batch.targets.push_back(masked ? kIgnoreTarget
                                   : static_cast<int32_t>(draw(2 * i + 1, which.model.vocab_size)));
  }
  if (!which.documents) return batch;
  const auto start = [&](int64_t position, int64_t sequence) {
    const int64_t cut = s / 3 + sequence;
    return position < cut ? int64_t{0} : cut;
  };
  for (int64_t i = 0; i < s * b; ++i)
    batch.position_ids.push_back(static_cast<int32_t>(i / b - start(i / b, i % b)));
  for (int64_t i = 0; i < s * b; ++i)
    batch.document_start.push_back(static_cast<int32_t>(start(i % s, i / s)));
  return batch;
}

std::vector<MicroBatch> random_batch(const LayoutCase& which, int64_t step) {
  std::vector<MicroBatch> batch;
  for (int64_t m = 0; m < which.num_micro_batches; ++m)
    batch.push_back(random_micro_batch(which, step, m));
  return batch;
}

std::vector<double> host_values(Backend& backend, const Tensor& x) {
  std::vector<double> values(static_cast<size_t>(x.numel()));
  dispatch_float(x.dtype, [&]<class T>() {
    std::vector<T> host(values.size());
    backend.download(host.data(), x);
    std::copy(host.begin(), host.end(), values.begin());
  });
  return values;
}

/// Largest |a - b| over `shard`'s rectangle of the reference tensor [rows, columns].
double deviation(const OptimizerShard& shard, const std::vector<double>& own,
                 const std::vector<double>& reference, int64_t reference_columns) {
  const Parameter& parameter = *shard.parameter;
  const int64_t columns = parameter.matrix_shape()[1];
  double largest = 0;
  for (int64_t row = shard.row_begin; row < shard.row_end; ++row) {
    const int64_t place = (parameter.offset[0] + row) * reference_columns + parameter.offset[1];
    for (int64_t column = 0; column < columns; ++column) {
      const double difference =
          own[static_cast<size_t>((row - shard.row_begin) * columns + column)] -
          reference[static_cast<size_t>(place + column)];
      // NaN differs from everything.
      largest = std::isnan(difference) ? std::numeric_limits<double>::infinity()
                                       : std::max(largest, std::abs(difference));
    }
  }
  return largest;
}

/// Compares the two systems after a step. Collective: every rank finds the same.
class Comparison {
 public:
  Comparison(const LayoutCase& which, Backend& backend, ProcessGroup& world, int64_t step)
      : which_(which),
        backend_(backend),
        world_(world),
        step_(step),
        rounding_(rounding_tolerance(which)) {}

  // Asked on all ranks: what is wrong on one of them only must end the comparison everywhere.
  void scalar(const std::string& what, double own, double reference) {
    const double scale = std::max(std::abs(reference), 1e-3);
    note({.what = what, .difference = std::abs(own - reference), .tolerance = rounding_ * scale},
         scale);
  }

  void gradients(LayoutRun& run, LayoutRun& alone) {
    statistics_.num_tensors = alone.store().size();
    for (int64_t i = 0; i < alone.store().size(); ++i) {
      const Parameter& reference = alone.store()[i];
      const auto expected = host_values(backend_, reference.gradient);
      const double scale = largest_of(expected);
      note_tensor({.what = "gradient of " + reference.spec.name,
                   .difference = deviation_of(run, reference, expected, &OptimizerShard::gradient),
                   .tolerance = rounding_ * scale},
                  scale);
    }
  }

  void weights(LayoutRun& run, LayoutRun& alone) {
    for (int64_t i = 0; i < alone.store().size(); ++i) {
      const Parameter& reference = alone.store()[i];
      const auto expected = host_values(backend_, reference.value);
      const double gradient_scale = largest_of(host_values(backend_, reference.gradient));
      const double scale = largest_of(expected);
      note_tensor({.what = "weights of " + reference.spec.name,
                   .difference = deviation_of(run, reference, expected, &OptimizerShard::master),
                   .tolerance = weight_tolerance(rounding_ * gradient_scale, scale)},
                  scale);
    }
  }

  const std::vector<LayoutDifference>& found() const { return found_; }
  const LayoutStatistics& statistics() const { return statistics_; }

 private:
  static double largest_of(const std::vector<double>& values) {
    double largest = 0;
    for (const double value : values) largest = std::max(largest, std::abs(value));
    return largest;
  }
  /// Of this rank's shards of a tensor.
  double deviation_of(LayoutRun& run, const Parameter& reference,
                      const std::vector<double>& expected, Tensor OptimizerShard::*values) {
    double largest = 0;
    for (const OptimizerShard& shard : run.optimizer().shards())
      if (shard.parameter->spec.name == reference.spec.name)
        largest = std::max(largest, deviation(shard, host_values(backend_, shard.*values), expected,
                                              reference.matrix_shape()[1]));
    return largest;
  }
  /// AdamW's first updates are lr g / (|g| + eps): an error of g comes out divided by eps. Beside
  /// it only the update itself rounds, because the initial weights are the same bits.
  double weight_tolerance(double gradient_error, double weight_scale) const {
    const auto steps = static_cast<double>(which_.num_steps);
    const OptimizerConfig& optimizer = which_.optimizer;
    return steps * (optimizer.lr * std::min(1.0, gradient_error / optimizer.adam_eps) +
                    kUpdateRoundings * dtype_epsilon(which_.dtype) * weight_scale);
  }
  void note_tensor(const LayoutDifference& difference, double scale) {
    const bool differs = note(difference, scale);
    if (differs && found_.front().tensor.empty()) found_.front().tensor = difference.what;
  }
  bool note(LayoutDifference difference, double scale) {
    // NaN differs from everything, and a maximum would lose it.
    if (std::isnan(difference.difference))
      difference.difference = std::numeric_limits<double>::infinity();
    difference.difference = world_.all_reduce(difference.difference, ReduceOp::max);
    difference.step = step_;
    if (scale > 0)
      statistics_.largest_relative =
          std::max(statistics_.largest_relative, difference.difference / scale);
    if (difference.difference > statistics_.nearest_tolerance * difference.tolerance) {
      statistics_.nearest_tolerance = difference.difference / difference.tolerance;
      statistics_.nearest = difference.what;
    }
    const bool differs = !(difference.difference <= difference.tolerance);
    if (differs && found_.empty()) found_.push_back(difference);
    return differs;
  }

  const LayoutCase& which_;
  Backend& backend_;
  ProcessGroup& world_;
  int64_t step_;
  double rounding_;
  std::vector<LayoutDifference> found_;
  LayoutStatistics statistics_;
};

void add_to(LayoutStatistics& total, const LayoutStatistics& more) {
  total.num_tensors = more.num_tensors;
  total.largest_relative = std::max(total.largest_relative, more.largest_relative);
  if (more.nearest_tolerance <= total.nearest_tolerance) return;
  total.nearest_tolerance = more.nearest_tolerance;
  total.nearest = more.nearest;
}

/// One axis of a layout alone.
struct SingleAxis {
  std::string name;
  ParallelConfig parallel;
};
/// Data parallelism first, because it stands in for what is left out of the others.
std::vector<SingleAxis> single_axes(const ParallelConfig& all) {
  const SingleAxis dp{"dp",
                      {.data_parallel_sharding_strategy = all.data_parallel_sharding_strategy,
                       .overlap_grad_reduce = all.overlap_grad_reduce,
                       .ddp_bucket_size = all.ddp_bucket_size}};
  std::vector<SingleAxis> list{dp};
  const auto add = [&](const char* name, bool used, auto change) {
    if (!used) return;
    list.push_back({name, dp.parallel});
    change(list.back().parallel);
  };
  add("tp", all.tensor_model_parallel_size > 1, [&](ParallelConfig& p) {
    p.tensor_model_parallel_size = all.tensor_model_parallel_size;
    p.sequence_parallel = all.sequence_parallel;
  });
  add("cp", all.context_parallel_size > 1,
      [&](ParallelConfig& p) { p.context_parallel_size = all.context_parallel_size; });
  add("pp", all.pipeline_model_parallel_size > 1, [&](ParallelConfig& p) {
    p.pipeline_model_parallel_size = all.pipeline_model_parallel_size;
    p.num_virtual_stages_per_pipeline_rank = all.num_virtual_stages_per_pipeline_rank;
    p.pipeline_schedule = all.pipeline_schedule;
    p.pipeline_layout = all.pipeline_layout;
  });
  add("ep", all.expert_model_parallel_size > 1,
      [&](ParallelConfig& p) { p.expert_model_parallel_size = all.expert_model_parallel_size; });
  add("expert_tp", all.expert_tensor_parallel_size > 1,
      [&](ParallelConfig& p) { p.expert_tensor_parallel_size = all.expert_tensor_parallel_size; });
  add("recompute", !all.recompute.empty(), [&](ParallelConfig& p) {
    p.recompute = {*std::ranges::max_element(all.recompute, {}, &parse_enum<Recompute>)};
  });
  return list;
}

}  // namespace

double rounding_tolerance(const LayoutCase& which) {
  const int64_t terms = which.shape.positions * which.shape.sequences * which.model.copies() *
                        which.num_micro_batches * which.model.hidden_size;
  return kRoundingFactor * dtype_epsilon(which.dtype) * std::sqrt(static_cast<double>(terms));
}

std::vector<LayoutDifference> compare_with_one_rank(const LayoutCase& which, Backend& backend,
                                                    ProcessGroups& groups,
                                                    LayoutStatistics* statistics) {
  ProcessGroups alone = make_single_process_groups(&backend);
  LayoutRun reference(which, {}, backend, alone);
  LayoutRun run(which, which.parallel, backend, groups);
  for (int64_t step = 0; step < which.num_steps; ++step) {
    const std::vector<MicroBatch> batch = random_batch(which, step);
    const StepMetrics expected = reference.step(batch);
    const StepMetrics metrics = run.step(batch);
    Comparison comparison(which, backend, *groups.world, step);
    comparison.scalar("loss", metrics.loss, expected.loss);
    comparison.scalar("z loss", metrics.z_loss, expected.z_loss);
    comparison.scalar("router balance loss", metrics.router_balance_loss,
                      expected.router_balance_loss);
    comparison.scalar("router z loss", metrics.router_z_loss, expected.router_z_loss);
    // All gradients before the norm, and the norm before the weights that it clips: what is found
    // first is the cause.
    comparison.gradients(run, reference);
    comparison.scalar("gradient norm", metrics.gradient_norm, expected.gradient_norm);
    comparison.weights(run, reference);
    if (statistics != nullptr) {
      add_to(*statistics, comparison.statistics());
      statistics->num_sharded_layers = std::ssize(run.sharded_layers());
    }
    if (!comparison.found().empty()) return comparison.found();
  }
  return {};
}

LayoutReport verify_layout(const LayoutCase& which, Backend& backend, int64_t world_size,
                           const GroupsOfMesh& groups_of) {
  // A router's choice jumps where two experts are equal within rounding, which is no fault: with
  // experts, only what differs with two sets of numbers counts.
  const auto compare = [&](LayoutCase layout, const DeviceMesh& mesh, LayoutReport& report) {
    for (int64_t tries = layout.model.num_experts > 0 ? 2 : 1; tries > 0; --tries, ++layout.seed) {
      ProcessGroups groups = groups_of(mesh);
      report = {};
      report.differences = compare_with_one_rank(layout, backend, groups, &report.statistics);
      if (report.differences.empty()) return true;
    }
    return false;
  };
  LayoutReport report;
  const DeviceMesh mesh(which.parallel, world_size);
  if (compare(which, mesh, report)) return report;
  report.differences.front().axis = "the combination of axes";
  const int64_t micro_batches_per_rank = which.num_micro_batches / mesh.size(MeshAxis::dp);
  for (const SingleAxis& axis : single_axes(which.parallel)) {
    if (!validate(axis.parallel, world_size).empty()) continue;
    const DeviceMesh single_mesh(axis.parallel, world_size);
    LayoutCase single = which;
    single.parallel = axis.parallel;
    single.num_micro_batches = micro_batches_per_rank * single_mesh.size(MeshAxis::dp);
    LayoutReport of_axis;
    if (compare(single, single_mesh, of_axis)) continue;
    report.differences.front().axis = axis.name;
    return report;
  }
  return report;
}

}  // namespace phalanx
