// The formulas, one function per group.
//
// Throughout: m micro-batches of this data-parallel rank; K copies, of which q come out of a layer
// (K, in the model's last layer 1); u = S/cp B H e, the bytes of one copy of this rank's positions;
// e bytes per element of activations and weights, a per gradient and statistic.
#include "cluster/study_traffic.h"

#include <algorithm>
#include <array>
#include <map>

#include "core/model/context_plan.h"
#include "core/train/memory_needs.h"
#include "core/train/memory_options.h"
#include "core/train/run_setup.h"
#include "kernels/null_backend.h"
#include "parallel/pipeline_schedule.h"

namespace phalanx {
namespace {

class Forecast {
 public:
  Forecast(const RunConfig& config, const DeviceMesh& mesh, int64_t rank)
      : config_(config),
        model_(config.model),
        parallel_(config.parallel),
        backend_(Device::cpu),
        groups_(make_measuring_process_groups(mesh, rank)),
        options_(stage_options(model_, parallel_, config.data.seq_length, groups_.pp->rank())),
        stage_(model_, store_, backend_, groups_, options_),
        schedule_(make_schedule(parallel_.pipeline_schedule,
                                {.stage = groups_.pp->rank(),
                                 .num_stages = groups_.pp->size(),
                                 .num_chunks = stage_.num_chunks(),
                                 .num_micro_batches = num_micro_batches(config, mesh)})),
        m_(num_micro_batches(config, mesh)),
        rows_(config.data.seq_length / groups_.cp->size() * config.training.micro_batch_size),
        e_(dtype_bytes(compute_dtype(config.training.precision))),
        a_(dtype_bytes(accumulator_dtype(compute_dtype(config.training.precision)))),
        u_(rows_ * model_.hidden_size * e_) {
    for (const PipelineAction& action : schedule_)
      split_ = split_ || action.kind == PipelineActionKind::backward_weight;
    const auto num_stages = static_cast<int64_t>(options_.stages.size());
    for (int64_t v = groups_.pp->rank(); v < num_stages; v += groups_.pp->size())
      stages_.push_back(v);
  }

  std::vector<StepBytes> run() {
    ends_of_the_model();
    for (const int64_t stage : stages_)
      for (int64_t layer = range(stage).begin; layer < range(stage).end; ++layer) {
        attention(layer);
        if (model_.num_experts > 0)
          experts();
        else
          feed_forward(copies_out(layer));
      }
    pipeline();
    buckets();
    // Loss tokens are counted; four sums of losses, the norm's squares, and whether all is finite.
    add(*groups_.dp, Collective::all_reduce, 8);
    add(*groups_.world, Collective::all_reduce, 4 * 8 + 8 + 8);
    std::vector<StepBytes> list;
    for (const auto& [key, bytes] : bytes_)
      if (!bytes || *bytes > 0) list.push_back({key.first, key.second, bytes});
    return list;
  }

 private:
  const LayerRange& range(int64_t stage) const {
    return options_.stages[static_cast<size_t>(stage)];
  }
  int64_t copies_out(int64_t layer) const {
    return layer == model_.num_layers - 1 ? 1 : model_.copies();
  }
  /// How often a layer's forward runs in a step, per micro-batch.
  int64_t forwards() const { return options_.recompute == Recompute::layer ? 2 : 1; }
  bool sequence_parallel() const { return parallel_.sequence_parallel && groups_.tp->size() > 1; }

  void add(const ProcessGroup& group, Collective operation, int64_t bytes) {
    if (group.size() == 1) return;
    auto& sum = bytes_.try_emplace({group.name(), operation}, 0).first->second;
    if (sum) *sum += bytes;
  }
  void add_unknown(const ProcessGroup& group, Collective operation) {
    if (group.size() > 1) bytes_[{group.name(), operation}] = std::nullopt;
  }

  /// Rows of `copies` copies enter products that are cut over tp (GatherRegion, CopyRegion), `n`
  /// times per micro-batch: with sp each rank gives its part, without there is nothing to do.
  void enter(int64_t copies, int64_t n) {
    if (sequence_parallel())
      add(*groups_.tp, Collective::all_gather, m_ * n * copies * u_ / groups_.tp->size());
  }
  /// The sum over tp of rows: a reduce-scatter with sp, else an all-reduce.
  void sum(int64_t copies, int64_t n) {
    add(*groups_.tp, sequence_parallel() ? Collective::reduce_scatter : Collective::all_reduce,
        m_ * n * copies * u_);
  }
  /// A column-parallel and then a row-parallel product. Backward: the gradient of the output comes
  /// in (once more for the weight half of a split backward), the input again, and the gradient of
  /// the input is summed.
  void column_parallel(int64_t copies) {
    enter(copies, forwards() + 1);
    sum(copies, 1);
  }
  void row_parallel(int64_t copies) {
    sum(copies, forwards());
    enter(copies, split_ ? 2 : 1);
  }

  void ends_of_the_model() {
    if (stages_.front() == 0) {  // the embedding's lookup, and its gradient
      sum(model_.copies(), 1);
      enter(model_.copies(), 1);
    }
    if (stages_.back() + 1 != std::ssize(options_.stages)) return;
    // The head: rows in, the sum of their gradients, three numbers per row and rank.
    enter(1, 1);
    sum(1, 1);
    add(*groups_.tp, Collective::all_gather, m_ * rows_ * 3 * a_);
  }

  void attention(int64_t layer) {
    const int64_t k = model_.copies();
    const int64_t q = copies_out(layer);
    column_parallel(k);
    if (q != k) column_parallel(1);  // the last copy's queries have a product of their own
    row_parallel(q);
    const NormPlacement norms = norm_placement(model_, layer);
    full_width_norm(norms.q_norm, q);
    full_width_norm(norms.k_norm, k);
    context(layer);
  }
  /// One number per row, forwards and (its gradient) backwards.
  void full_width_norm(HeadNorm norm, int64_t copies) {
    if (norm != HeadNorm::full_width) return;
    add(*groups_.tp, Collective::all_reduce, m_ * (forwards() + 1) * copies * rows_ * a_);
  }
  /// Keys and values that other ranks read go to them in every forward (of attention: once more
  /// with recomputation) and in the backward; gradients of those that came go home.
  void context(int64_t layer) {
    if (groups_.cp->size() == 1) return;
    const auto [sent, received] = keys_of_others(layer);
    const int64_t groups = std::max<int64_t>(1, model_.query_groups() / groups_.tp->size());
    const int64_t key_bytes =
        2 * config_.training.micro_batch_size * groups * model_.head_dim() * e_;
    const int64_t times = options_.recompute == Recompute::none ? 2 : 3;
    add(*groups_.cp, Collective::exchange, m_ * (times * sent + received) * key_bytes);
  }
  /// Positions times copies that a layer's attention sends and receives. Layers of a model differ
  /// in the pattern of their mask alone.
  std::pair<int64_t, int64_t> keys_of_others(int64_t layer) {
    const AttentionMask mask = attention_mask(model_, layer);
    const auto [found, fresh] = keys_.try_emplace(mask.pattern);
    auto& [sent, received] = found->second;
    if (!fresh) return found->second;
    const ContextPlan plan =
        make_context_plan(mask, config_.data.seq_length, groups_.cp->rank(), groups_.cp->size());
    const auto keys = [&](const KeyPiece& piece) {
      return piece.count * plan.bands[piece.band].count;
    };
    for (const ContextStep& step : plan.steps) {
      for (const KeyPiece& piece : step.sent) sent += keys(piece);
      for (const KeyPiece& piece : step.received) received += keys(piece);
    }
    return found->second;
  }
  void feed_forward(int64_t q) {
    column_parallel(q);
    row_parallel(q);
  }
  /// How many rows go where is the router's choice. What is counted is known.
  void experts() {
    const int64_t counts = m_ * forwards() * 8 * model_.num_experts;
    add(*groups_.tp, Collective::all_reduce, counts);
    add(*groups_.cp, Collective::all_reduce, counts);
    add_unknown(*groups_.ep, Collective::all_to_all);
    add_unknown(*groups_.expert_tp, Collective::all_gather);
    add_unknown(*groups_.expert_tp, Collective::reduce_scatter);
  }

  /// Each micro-batch crosses every boundary between virtual stages forwards and backwards: all
  /// copies, or one after the last layer.
  void pipeline() {
    if (groups_.pp->size() == 1) return;
    const int64_t cut = sequence_parallel() ? groups_.tp->size() : 1;
    const auto crossing = [&](int64_t stage) {
      return (range(stage).end == model_.num_layers ? 1 : model_.copies()) * u_ / cut;
    };
    for (const int64_t v : stages_) {
      if (v + 1 < std::ssize(options_.stages))
        add(*groups_.pp, Collective::exchange, m_ * crossing(v));
      if (v > 0) add(*groups_.pp, Collective::exchange, m_ * crossing(v - 1));
    }
  }

  /// Gradients go once into a reduce-scatter, and each rank's shard of the weights once into an
  /// all-gather; of layers that ZeRO-3 shards in every micro-batch, and as often as they are
  /// fetched.
  void buckets() {
    const GradientBuffer::Options rules = gradient_options(stage_, parallel_);
    const std::vector<int64_t> fetched = fetches(std::ssize(rules.units));
    for (const Bucket& bucket :
         make_buckets(store_, bucket_rules(groups_, rules.bucket_size, rules.units))) {
      const ProcessGroup& group = group_of(bucket, groups_);
      const bool resident = bucket.unit < 0;
      const int64_t reduced = resident ? 1 : m_;
      const int64_t gathered = resident ? 1 : fetched[static_cast<size_t>(bucket.unit)];
      const int64_t own = bucket.counts[static_cast<size_t>(group.rank())];
      add(group, Collective::reduce_scatter, reduced * bucket.numel() * a_);
      add(group, Collective::all_gather, gathered * own * e_);
      for (int64_t i = bucket.first_parameter; i < bucket.last_parameter; ++i)
        partial_gradient(store_[i], reduced);
    }
  }
  /// Sums outside the bucket's own group. Of GradientSum's ranks the lowest sends to all others,
  /// the others send to it.
  void partial_gradient(const Parameter& parameter, int64_t times) {
    const Placement& placement = parameter.spec.placement;
    const int64_t bytes = times * parameter.numel() * a_;
    if (placement.partial_gradient.contains(MeshAxis::tp))
      add(*groups_.tp, Collective::all_reduce, bytes);
    const int64_t replicas = placement.tp_replicas;
    if (replicas > 1) {
      const bool lowest = groups_.tp->rank() % replicas == 0;
      add(*groups_.tp, Collective::exchange, (lowest ? replicas - 1 : 1) * bytes);
    }
    if (placement.is_shared_by_stages()) add(*groups_.pp, Collective::exchange, bytes);
  }
  /// How often each layer's weights are gathered in a step: of the two that are kept whole, the one
  /// used last stays, and the other makes room for the next (ShardedUnits).
  std::vector<int64_t> fetches(int64_t num_units) const {
    std::vector<int64_t> times(static_cast<size_t>(num_units), 0);
    std::array<int64_t, 2> kept{-1, -1};
    size_t last_used = 0;
    const auto fetch = [&](int64_t unit) {
      for (size_t i = 0; i < kept.size(); ++i)
        if (kept[i] == unit) return i;
      kept[1 - last_used] = unit;
      ++times[static_cast<size_t>(unit)];
      return 1 - last_used;
    };
    const auto visit = [&](int64_t unit, int64_t next) {
      last_used = fetch(unit);
      if (0 <= next && next < num_units) fetch(next);
    };
    for (const PipelineAction& action : schedule_) {
      if (num_units == 0) break;
      int64_t first = 0;  // unit of the chunk
      for (int64_t chunk = 0; chunk < action.chunk; ++chunk)
        first += range(stages_[static_cast<size_t>(chunk)]).size();
      const int64_t layers = range(stages_[static_cast<size_t>(action.chunk)]).size();
      const bool forward = action.kind == PipelineActionKind::forward;
      for (int64_t i = 0; i < layers; ++i) {
        const int64_t unit = forward ? first + i : first + layers - 1 - i;
        visit(unit, forward ? unit + 1 : unit - 1);
      }
    }
    return times;
  }

  const RunConfig& config_;
  const ModelConfig& model_;
  const ParallelConfig& parallel_;
  NullBackend backend_;
  ProcessGroups groups_;
  StageOptions options_;
  ParameterStore store_;
  PhdStage stage_;  // registers the parameters
  std::vector<PipelineAction> schedule_;
  std::vector<int64_t> stages_;  // virtual stages of this rank
  int64_t m_, rows_, e_, a_, u_;
  bool split_ = false;                                      // weight halves of backwards run apart
  std::map<KeyPattern, std::pair<int64_t, int64_t>> keys_;  // sent, received
  std::map<std::pair<std::string, Collective>, std::optional<int64_t>> bytes_;
};

}  // namespace

std::vector<StepBytes> predict_step_bytes(const RunConfig& config, int64_t world_size,
                                          int64_t rank) {
  const DeviceMesh mesh(config.parallel, world_size);
  return Forecast(config, mesh, rank).run();
}

}  // namespace phalanx
