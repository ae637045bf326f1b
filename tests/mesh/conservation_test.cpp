// Conservation: bytes and calls of one training step of a whole model, on every group, equal closed
// formulas. The model is bf16: e bytes per element of activations and weights, a bytes per
// gradient.
//
// Everywhere: L layers; m micro-batches of this data-parallel rank; K copies, of which q come out
// of a layer (K, in the last layer 1); u = S/cp B H e, the bytes of one copy of this rank's
// positions.
#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "parallel/thread_process_group.h"
#include "tests/mesh/mesh_case.h"
#include "tests/mesh/mesh_system.h"

namespace phalanx {

// Found where Traffic is declared.
static bool operator==(const Traffic& a, const Traffic& b) {
  return a.calls == b.calls && a.bytes == b.bytes;
}
static void PrintTo(const Traffic& traffic, std::ostream* out) {
  *out << traffic.calls << " calls, " << traffic.bytes << " bytes";
}

namespace test {
namespace {

constexpr int64_t kE = 2;
constexpr int64_t kA = 4;
constexpr int64_t kHeadNorms = 3;  // of q, k and v, in every layer

/// One rank after a step, with what the step moved.
struct StepTraffic {
  const LayoutCase& layout;
  MeshSystem& system;
  std::map<const ProcessGroup*, TrafficSnapshot> begin;

  Traffic of(const std::unique_ptr<ProcessGroup>& group, Collective operation) const {
    return begin.at(group.get()).since(operation);
  }
  int64_t m() const { return layout.num_micro_batches / system.groups.dp->size(); }
  int64_t copies() const { return layout.model.copies(); }
  int64_t u() const {
    return layout.shape.positions / system.groups.cp->size() * layout.shape.sequences *
           layout.model.hidden_size * kE;
  }
};

void on_each_rank(LayoutCase layout, int64_t world_size,
                  const std::function<void(const StepTraffic&)>& expect) {
  layout.dtype = DType::bf16;
  std::vector<MicroBatch> batch;
  for (int64_t i = 0; i < layout.num_micro_batches; ++i)
    batch.push_back(make_micro_batch(layout, i));
  run_thread_ranks(static_cast<int>(world_size), [&](ThreadRank& rank) {
    MeshSystem system(layout, layout.parallel,
                      rank.process_groups(DeviceMesh(layout.parallel, rank.size())));
    StepTraffic traffic{layout, system, {}};
    const ProcessGroups& g = system.groups;
    for (const auto* group :
         {&g.world, &g.tp, &g.cp, &g.dp, &g.dp_cp, &g.pp, &g.ep, &g.expert_tp, &g.expert_dp})
      traffic.begin.emplace(group->get(), TrafficSnapshot(**group));
    system.step(batch);
    expect(traffic);
  });
}

void on_each_rank(const char* line, const std::function<void(const StepTraffic&)>& expect) {
  SCOPED_TRACE(line);
  const MeshCase mesh(line);
  on_each_rank(mesh.layout, mesh.world_size, expect);
}

/// Sums of a rank's calls and bytes.
struct Sum {
  Traffic total;
  void add(int64_t calls, int64_t bytes) {
    total.calls += calls;
    total.bytes += bytes;
  }
};

/// Bytes of the loss's three numbers per row that each rank of tp gathers from the others.
int64_t loss_statistics(const StepTraffic& step) {
  return 3 * kA * step.u() / (step.layout.model.hidden_size * kE);
}

int64_t forwards(const StepTraffic& step) {
  const auto& words = step.layout.parallel.recompute;
  return !words.empty() && words.front() == "layer" ? 2 : 1;
}

// tp without sp, all-reduce. Forward: embedding K u, each layer's attention and feed-forward 2 q u
// (twice with recomputation of layers). Backward: the loss's input u, each layer's feed-forward q u
// and attention K u, plus u in the last layer where q alone is projected of one copy. Loss: 8 and
// 16 bytes per row. Per step: the gradients of 3 L head norms of D elements.
TEST(Conservation, TensorParallelReducesWholeActivations) {
  for (const char* line :
       {"cswa2: tp2", "cswa2: tp4", "hybrid: tp2", "swa3: tp2 dp2", "cswa2: tp2 cp2",
        "cswa2: tp2 recompute=layer", "cswa2: tp2 recompute=attention"})
    on_each_rank(line, [](const StepTraffic& step) {
      const ModelConfig& model = step.layout.model;
      const int64_t k = step.copies(), u = step.u(), layers = model.num_layers;
      const int64_t head_norms = model.norm_scheme == NormScheme::pre_norm ? 0 : kHeadNorms;
      Sum sum;
      sum.add(1 + 1, k * u + u);
      for (int64_t layer = 0; layer < layers; ++layer) {
        const bool last = layer == layers - 1;
        const int64_t q = last ? 1 : k;
        sum.add(2 * forwards(step), 2 * q * u * forwards(step));
        sum.add(2, q * u + k * u);
        if (last && k > 1) sum.add(1, u);
      }
      const Traffic expected{
          step.m() * sum.total.calls + head_norms * layers,
          step.m() * sum.total.bytes + head_norms * layers * model.head_dim() * kA};
      EXPECT_EQ(step.of(step.system.groups.tp, Collective::all_reduce), expected);
      const Traffic statistics{step.m(), step.m() * loss_statistics(step)};
      EXPECT_EQ(step.of(step.system.groups.tp, Collective::all_gather), statistics);
      for (const Collective other : {Collective::reduce_scatter, Collective::exchange})
        EXPECT_EQ(step.of(step.system.groups.tp, other), Traffic{});
    });
}

// tp with sp. An all-gather hands in a rank's own 1/tp of the rows, a reduce-scatter all of them,
// so that each all-reduce above is one of each. Gathers: in the forward the inputs of the
// projections, (K + q) u/tp (with recomputation twice); in the backward those again and the
// gradients of the outputs, (K + q + 2 q) u/tp; the last layer's lone q twice u/tp; the loss's
// input u/tp, the embedding's gradient K u/tp. Reduce-scatters: outputs 2 q u, gradients of inputs
// (K + q) u and u, loss u, embedding K u. Per step: all-reduce of every norm's gradient.
TEST(Conservation, SequenceParallelMovesEachAllReduceInTwoHalves) {
  for (const char* line : {"cswa2: tp2 sp", "cswa2: tp4 sp", "hybrid: tp2 sp", "cswa2: tp2 sp cp2",
                           "cswa2: tp2 sp recompute=layer"})
    on_each_rank(line, [](const StepTraffic& step) {
      const ModelConfig& model = step.layout.model;
      const int64_t k = step.copies(), u = step.u(), layers = model.num_layers;
      const int64_t n = forwards(step);
      Sum gathers, scatters;
      gathers.add(2, u + k * u);
      scatters.add(2, u + k * u);
      for (int64_t layer = 0; layer < layers; ++layer) {
        const bool last = layer == layers - 1;
        const int64_t q = last ? 1 : k;
        gathers.add(2 * n + 4, n * (k + q) * u + (k + 3 * q) * u);
        scatters.add(2 * n + 2, n * 2 * q * u + (k + q) * u);
        if (last && k > 1) gathers.add(n + 1, (n + 1) * u);
        if (last && k > 1) scatters.add(1, u);
      }
      const auto& tp = step.system.groups.tp;
      const Traffic all_gathers{
          step.m() * (gathers.total.calls + 1),
          step.m() * (gathers.total.bytes / tp->size() + loss_statistics(step))};
      const Traffic reduce_scatters{step.m() * scatters.total.calls,
                                    step.m() * scatters.total.bytes};
      EXPECT_EQ(step.of(tp, Collective::all_gather), all_gathers);
      EXPECT_EQ(step.of(tp, Collective::reduce_scatter), reduce_scatters);
      // Norms: attention's of layer 0, one per feed-forward, the final one.
      const int64_t wide_norms = layers + 2;
      const Traffic reduced{
          kHeadNorms * layers + wide_norms,
          (kHeadNorms * layers * model.head_dim() + wide_norms * model.hidden_size) * kA};
      EXPECT_EQ(step.of(tp, Collective::all_reduce), reduced);
    });
}

// Key-value heads fewer than tp: two ranks that hold the same head send each other the gradients of
// k and v of every layer, D H elements each, once per step.
TEST(Conservation, SharedKeyHeadsSumTheirGradientsInPairs) {
  on_each_rank("cswa2: tp4 kv2", [](const StepTraffic& step) {
    const ModelConfig& model = step.layout.model;
    const int64_t sent = 2 * model.num_layers;
    const Traffic expected{2 * sent, sent * model.head_dim() * model.hidden_size * kA};
    EXPECT_EQ(step.of(step.system.groups.tp, Collective::exchange), expected);
  });
}

// pp, exchange: every micro-batch crosses each boundary between virtual stages twice, forwards and
// backwards, with c u bytes (u/tp with sp) of c copies: all of them, or one after the last layer.
// One call per message sent and one per message received, whatever the schedule. Tied ends sum the
// table's gradient once per step: each sends it to the other.
TEST(Conservation, PipelineCrossesEachBoundaryTwicePerMicroBatch) {
  for (const char* line :
       {"cswa2: pp2", "cswa2: pp4", "cswa2: pp2 gpipe", "cswa2: pp2 zb", "untied: pp4 zb",
        "cswa2: pp2 vp2", "swa3: pp2 layout=4,0", "hybrid: pp2 tp2 sp", "cswa2: pp2 dp2 cp2",
        "cswa2: pp2 recompute=layer"})
    on_each_rank(line, [](const StepTraffic& step) {
      const ModelConfig& model = step.layout.model;
      const ProcessGroups& groups = step.system.groups;
      const ParallelConfig& parallel = step.layout.parallel;
      const std::vector<LayerRange> stages =
          pipeline_stages(model, parallel, step.layout.shape.positions);
      const auto num_stages = static_cast<int64_t>(stages.size());
      const int64_t rows = parallel.sequence_parallel ? groups.tp->size() : 1;
      const auto crossing = [&](int64_t stage) {  // from it to the next
        const bool all = stages[static_cast<size_t>(stage)].end == model.num_layers;
        return (all ? 1 : model.copies()) * step.u() / rows;
      };
      Sum sum;
      for (int64_t v = groups.pp->rank(); v < num_stages; v += groups.pp->size()) {
        if (v + 1 < num_stages) sum.add(2 * step.m(), step.m() * crossing(v));
        if (v > 0) sum.add(2 * step.m(), step.m() * crossing(v - 1));
      }
      const bool end = groups.pp->rank() == 0 || groups.pp->rank() == groups.pp->size() - 1;
      if (end && !model.untie_embeddings_and_output_weights)
        sum.add(2, model.padded_vocab_size() / groups.tp->size() * model.hidden_size * kA);
      EXPECT_EQ(step.of(groups.pp, Collective::exchange), sum.total);
    });
}

// cp, exchange, rank r of c, p = S / 2c positions per piece, t = 2 B G/tp D e bytes of keys and
// values of a position: per layer and micro-batch (4 (c-1) + r) p t (context_attention_test.cpp),
// and (c-1+r) p t more where attention is computed again. Not a byte more for more copies.
TEST(Conservation, ContextParallelMovesOriginalsOnlyForEveryK) {
  for (const PhdMode mode : {PhdMode::phd, PhdMode::cswa})
    for (const char* mesh : {"cp2", "cp4", "cp2 tp2", "cp2 recompute=attention", "cp4 dp2",
                             "cp2 recompute=layer", "cp2 pp2 zb"}) {
      std::map<int64_t, Traffic> of_rank;  // the same for all K
      std::mutex mutex;
      for (const int64_t copies : {1, 2, 4}) {
        SCOPED_TRACE(testing::Message() << mesh << " K " << copies);
        MeshCase item(std::string("cswa2: ") + mesh);
        item.layout.model.phd = mode;
        item.layout.model.phd_copies = copies;
        on_each_rank(item.layout, item.world_size, [&](const StepTraffic& step) {
          const ModelConfig& model = step.layout.model;
          const ProcessGroups& groups = step.system.groups;
          const int64_t c = groups.cp->size(), r = groups.cp->rank();
          const int64_t piece = step.layout.shape.positions / (2 * c);
          const int64_t t = 2 * step.layout.shape.sequences * model.query_groups() /
                            groups.tp->size() * model.head_dim() * kE;
          const int64_t again = step.layout.parallel.recompute.empty() ? 0 : c - 1 + r;
          const std::vector<LayerRange> stages =
              pipeline_stages(model, step.layout.parallel, step.layout.shape.positions);
          const int64_t layers = stages[static_cast<size_t>(groups.pp->rank())].size();
          const Traffic moved = step.of(groups.cp, Collective::exchange);
          EXPECT_EQ(moved.bytes, step.m() * layers * (4 * (c - 1) + r + again) * piece * t);
          if (groups.pp->size() > 1) return;  // stages are cut by cost, which knows K
          const std::scoped_lock lock(mutex);
          const auto [found, first] = of_rank.emplace(groups.world->rank(), moved);
          EXPECT_TRUE(first || found->second == moved);
        });
      }
    }
}

// dp x cp with ZeRO-1: one reduce-scatter of every bucket, in all the gradients of all weights but
// experts, a bytes each; one all-gather in which a rank hands in the weights of its own shards, e
// bytes each. Experts: the same over expert_dp. dp: the count of loss tokens, 8 bytes. world: the
// 4 sums of the losses, the squares of the norm, and whether all is finite: 32 + 8 + 8 bytes.
TEST(Conservation, DataParallelMovesEveryGradientAndWeightOnce) {
  for (const char* line : {"cswa2: dp2", "cswa2: dp4", "untied: dp2 cp2", "cswa2: dp2 tp2 pp2",
                           "moe: dp4 ep2", "moe: dp2 cp2 tp2 sp ep4 etp2"})
    on_each_rank(line, [](const StepTraffic& step) {
      const ProcessGroups& groups = step.system.groups;
      int64_t weights[2] = {0, 0}, own[2] = {0, 0}, buckets[2] = {0, 0};  // [experts]
      for (int64_t i = 0; i < step.system.store.size(); ++i) {
        const Parameter& parameter = step.system.store[i];
        weights[parameter.spec.placement.is_expert()] += parameter.numel();
      }
      for (const OptimizerShard& shard : step.system.optimizer.shards())
        own[shard.parameter->spec.placement.is_expert()] += shard.gradient.numel();
      for (const Bucket& bucket : step.system.gradients.buckets()) ++buckets[bucket.expert];
      for (const bool expert : {false, true}) {
        const auto& group = expert ? groups.expert_dp : groups.dp_cp;
        const int64_t times = group->size() > 1 ? 1 : 0;
        const Traffic scattered{times * buckets[expert], times * weights[expert] * kA};
        const Traffic gathered{times * buckets[expert], times * own[expert] * kE};
        EXPECT_EQ(step.of(group, Collective::reduce_scatter), scattered) << expert;
        EXPECT_EQ(step.of(group, Collective::all_gather), gathered) << expert;
      }
      const Traffic tokens{groups.dp->size() > 1 ? 1 : 0, groups.dp->size() > 1 ? 8 : 0};
      EXPECT_EQ(step.of(groups.dp, Collective::all_reduce), tokens);
      EXPECT_EQ(step.of(groups.world, Collective::all_reduce), (Traffic{3, 48}));
    });
}

// dp x cp with ZeRO-3, one pipeline stage, L layers: what is not of a layer as with ZeRO-1. Layer
// i's gradients go into a reduce-scatter in every micro-batch. Its weights are gathered in the
// first forward; in every backward, but for the two layers that the forward left in the buffers; in
// every later forward, but for the two that the backward left: 1 + m [i < L-2] + (m-1) [i > 1]
// times.
TEST(Conservation, ShardedLayersAreGatheredAheadAndReducedInEveryMicroBatch) {
  for (const char* line :
       {"cswa2: dp2 zero3", "swa3: dp4 zero3", "hybrid: dp2 cp2 zero3", "cswa2: dp2 tp2 sp zero3"})
    on_each_rank(line, [](const StepTraffic& step) {
      const auto& group = step.system.groups.dp_cp;
      const int64_t layers = step.layout.model.num_layers;
      Sum scattered, gathered;
      ASSERT_EQ(std::ssize(step.system.run.sharded_layers()), layers);
      for (const ParameterRange& unit : step.system.run.sharded_layers())
        for (int64_t i = unit.first; i < unit.last; ++i)
          EXPECT_EQ(step.system.store[i].value.data, nullptr) << "weights stay after their layer";
      for (size_t i = 0; i < step.system.gradients.buckets().size(); ++i) {
        const Bucket& bucket = step.system.gradients.buckets()[i];
        const int64_t own = step.system.gradients.value_shard(i).numel();
        const bool resident = bucket.unit < 0;
        const int64_t reduced = resident ? 1 : step.m();
        const int64_t fetched = resident ? 1
                                         : 1 + (bucket.unit < layers - 2 ? step.m() : 0) +
                                               (bucket.unit > 1 ? step.m() - 1 : 0);
        scattered.add(reduced, reduced * bucket.numel() * kA);
        gathered.add(fetched, fetched * own * kE);
      }
      EXPECT_EQ(step.of(group, Collective::reduce_scatter), scattered.total);
      EXPECT_EQ(step.of(group, Collective::all_gather), gathered.total);
    });
}

// ep, all-to-all, summed over all ranks: per layer and micro-batch 8 E bytes of counts, and every
// choice of every row four times as a row of H elements (there and back, forwards and backwards)
// and twice as a weight: 2 n (2 H e + a) for n choices; 7 calls. expert_tp: all-gather of 8 E and,
// for each arrived choice, of H e + a and H e; reduce-scatter of the same by each of its ranks. cp:
// all-reduce of 8 E of counts.
TEST(Conservation, ExpertParallelMovesEveryChoiceThereAndBackTwice) {
  for (const char* line : {"moe: dp2 ep2", "moe: dp4 ep4", "moe: cp2 ep2", "moe: dp2 tp2 sp ep4",
                           "moe: dp4 ep2 etp2", "moe: dp2 cp2 tp2 sp ep4 etp2", "moe: dp2 etp2"})
    on_each_rank(line, [](const StepTraffic& step) {
      const ModelConfig& model = step.layout.model;
      const ProcessGroups& groups = step.system.groups;
      const int64_t layers = model.num_layers, world = groups.world->size();
      const int64_t counts = step.m() * layers * 8 * model.num_experts;
      // Rows of all ranks: each position of the global batch and each copy once.
      const int64_t rows = step.layout.num_micro_batches * step.layout.shape.positions *
                           step.layout.shape.sequences * ((layers - 1) * step.copies() + 1);
      const int64_t choices = rows * model.moe_router_topk;
      const int64_t moved = choices * (2 * model.hidden_size * kE + kA);
      const auto total = [&](const std::unique_ptr<ProcessGroup>& group, Collective operation) {
        return groups.world->all_reduce(step.of(group, operation).bytes, ReduceOp::sum);
      };
      const int64_t ep = groups.ep->size() > 1 ? 1 : 0;
      const int64_t expert_tp = groups.expert_tp->size();
      const int64_t cut = expert_tp > 1 ? 1 : 0;
      EXPECT_EQ(step.of(groups.ep, Collective::all_to_all).calls, ep * 7 * step.m() * layers);
      EXPECT_EQ(total(groups.ep, Collective::all_to_all), ep * (world * counts + 2 * moved));
      EXPECT_EQ(total(groups.expert_tp, Collective::all_gather), cut * (world * counts + moved));
      EXPECT_EQ(total(groups.expert_tp, Collective::reduce_scatter), cut * expert_tp * moved);
      const int64_t shared = groups.cp->size() > 1 ? counts : 0;
      EXPECT_EQ(step.of(groups.cp, Collective::all_reduce).bytes, shared);
    });
}

}  // namespace
}  // namespace test
}  // namespace phalanx
