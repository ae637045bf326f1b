// PhdStage: embedding, layers, final norm, loss; forward above backward.
#include "core/model/phd_stage.h"

#include <algorithm>
#include <cmath>

#include "core/model/rms_norm.h"
#include "kernels/null_backend.h"

namespace phalanx {
namespace {

// Logit rows per chunk of the loss: enough for full speed of the product, small against
// activations.
constexpr int64_t kLossChunkRows = 1024;

double head_init_std(const ModelConfig& config) {
  return config.init_method == InitScheme::megatron
             ? 1.0 / std::sqrt(static_cast<double>(config.hidden_size))
             : base_init_std(config);
}

/// Everything one micro-batch in flight keeps between its forward and its backward.
struct MicroBatchState {
  Arena arena;
  SequenceInputs inputs;
  Tensor ids;      // [S, B]
  Tensor targets;  // [S * B]
  std::vector<TransformerLayer::Saved> layers;
  RmsNorm::Saved final_norm;
  Tensor dhidden;  // [S, B, H]: the loss computes its gradient at once
};

}  // namespace

struct PhdStage::Impl {
  /// A twin of the stage on a null backend runs one micro-batch with every optional input.
  static MemoryPlan measure_memory(const ModelConfig& model, Device device, SequenceParallel mode,
                                   const StageShape& stage_shape, DType compute_dtype);

  Impl(const ModelConfig& model, ParameterStore& store, Backend& backend,
       ProcessGroups& process_groups, SequenceParallel mode);

  void allocate(const StageShape& stage_shape, DType dtype, int64_t slots, bool measure);
  void load(const MicroBatch& batch, MicroBatchState& state);
  Tensor run_layers(MicroBatchState& state);
  Tensor hidden(MicroBatchState& state);
  void forward(const MicroBatch& batch, MicroBatchState& state);
  void backward(MicroBatchState& state, bool last);
  void final_from(int64_t first_parameter, bool last);
  LossSums read_sums();
  Tensor upload_ids(Arena& arena, const char* name, const Shape& shape,
                    const std::vector<int32_t>& host);

  ModelConfig config;
  ParameterStore& parameters;
  Backend& ops;
  ProcessGroups& groups;
  SequenceParallel sequence_parallel;
  VocabParallelEmbedding embedding;
  std::vector<TransformerLayer> layers;
  std::optional<RmsNorm> final_norm;
  int64_t final_norm_parameter = 0;
  std::optional<VocabParallelLoss> loss;

  StageShape shape;
  DType dtype = DType::f32;
  std::vector<std::shared_ptr<void>> blocks;
  std::optional<Arena> fixed;
  std::optional<Arena> scratch;
  std::vector<MicroBatchState> slots;
  Tensor rope_table;  // [S * K or S, D]
  Tensor sums;        // [2] f64

  const std::vector<MicroBatch>* micro_batches = nullptr;
  GradientBuffer* gradients = nullptr;
  double loss_scale = 1.0;
};

PhdStage::Impl::Impl(const ModelConfig& model, ParameterStore& store, Backend& backend,
                     ProcessGroups& process_groups, SequenceParallel mode)
    : config(model),
      parameters(store),
      ops(backend),
      groups(process_groups),
      sequence_parallel(mode),
      embedding({store, backend, *process_groups.tp, mode}, "embedding.weight",
                {model.padded_vocab_size(), model.hidden_size}, {.stddev = base_init_std(model)}) {
  const TensorParallelContext context{parameters, ops, *groups.tp, sequence_parallel};
  layers.reserve(static_cast<size_t>(config.num_layers));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const bool last = layer == config.num_layers - 1;
    layers.emplace_back(
        LayerContext{
            config, layer, context, *groups.cp, {.ep = *groups.ep, .expert_tp = *groups.expert_tp}},
        last ? QueryRows::last_copy : QueryRows::all_copies);
  }
  final_norm_parameter = parameters.size();
  final_norm.emplace(context, "final_norm.weight",
                     RmsNorm::Init{.width = config.hidden_size, .epsilon = config.norm_epsilon});
  Parameter* head = &embedding.table();
  if (config.untie_embeddings_and_output_weights)
    head = &parameters.add({.name = "head.weight",
                            .global_shape = {config.padded_vocab_size(), config.hidden_size},
                            .kind = ParameterKind::head,
                            .placement = Placement::sharded(MeshAxis::tp, 0),
                            .initialiser = {.stddev = head_init_std(config)}},
                           groups.tp->rank(), groups.tp->size());
  loss.emplace(context, *head, config.vocab_size, kLossChunkRows);
}

Tensor PhdStage::Impl::upload_ids(Arena& arena, const char* name, const Shape& ids_shape,
                                  const std::vector<int32_t>& host) {
  if (host.empty()) return {};
  check(static_cast<int64_t>(host.size()) == ids_shape.numel(), name, " has ", host.size(),
        " entries, expected ", ids_shape.to_string());
  const Tensor ids = arena.tensor(name, ids_shape, DType::i32);
  ops.upload(ids, host.data());
  return ids;
}

// The micro-batch to the device, into its slot.
void PhdStage::Impl::load(const MicroBatch& batch, MicroBatchState& state) {
  check(batch.positions == shape.positions && batch.sequences == shape.sequences,
        "the stage was planned for micro-batches of ", shape.sequences, " x ", shape.positions,
        ", got ", batch.sequences, " x ", batch.positions);
  state.arena.clear();
  const int64_t s = batch.positions;
  const int64_t b = batch.sequences;
  state.ids = upload_ids(state.arena, "ids", {s, b}, batch.tokens);
  state.targets = upload_ids(state.arena, "targets", {s * b}, batch.targets);
  state.inputs = {.positions = s, .sequences = b, .rope_table = rope_table};
  state.inputs.position_ids = upload_ids(state.arena, "position_ids", {s, b}, batch.position_ids);
  state.inputs.document_start =
      upload_ids(state.arena, "document_start", {b, s}, batch.document_start);
}

// x [S, B, 1, H] after the last layer: the last copies.
Tensor PhdStage::Impl::run_layers(MicroBatchState& state) {
  Memory memory{state.arena, *scratch};
  const int64_t rows =
      shape.positions / (sequence_parallel == SequenceParallel::on ? groups.tp->size() : 1);
  Tensor x = state.arena.tensor(
      "embedding", {rows, shape.sequences, config.copies(), config.hidden_size}, dtype);
  embedding.forward(x, state.ids, memory);
  for (size_t i = 0; i < layers.size(); ++i) {
    const Tensor y = state.arena.tensor("layer.output", layers[i].output_shape(x.shape), dtype);
    layers[i].forward(y, x, state.layers[i], memory, state.inputs);
    x = y;
  }
  return x;
}

// [S, B, H]: what the head reads.
Tensor PhdStage::Impl::hidden(MicroBatchState& state) {
  const Tensor x = run_layers(state);
  Memory memory{state.arena, *scratch};
  const Tensor normed =
      state.arena.tensor("final_norm", {x.shape[0], x.shape[1], x.shape.back()}, dtype);
  final_norm->forward(normed, x, state.final_norm, memory);
  return normed;
}

void PhdStage::Impl::forward(const MicroBatch& batch, MicroBatchState& state) {
  load(batch, state);
  const Tensor h = hidden(state);
  const ArenaScope scope(*scratch);
  Memory memory{state.arena, *scratch};
  state.dhidden = state.arena.tensor("dhidden", h.shape, dtype);
  loss->forward_backward(state.dhidden.as_matrix(), h.as_matrix(), state.targets, sums,
                         {.loss_scale = loss_scale, .z_loss = config.z_loss_coeff}, memory);
}

void PhdStage::Impl::final_from(int64_t first_parameter, bool last) {
  if (last && gradients != nullptr) gradients->final_from(first_parameter);
}

void PhdStage::Impl::backward(MicroBatchState& state, bool last) {
  const ArenaScope scope(*scratch);
  Memory memory{state.arena, *scratch};
  const int64_t rows = state.dhidden.shape[0];
  const Shape full{rows, shape.sequences, config.copies(), config.hidden_size};
  // Two buffers in turn: a layer reads dy and writes dx.
  Tensor dx = scratch->tensor("dx", full, dtype);
  Tensor dy = scratch->tensor("dy", full, dtype);
  Tensor dlast = dy;
  dlast.shape = full.with_dim(2, 1);  // the last layer's output has one copy
  final_norm->backward(dlast, state.dhidden, state.final_norm);
  final_from(final_norm_parameter, last);
  for (size_t i = layers.size(); i-- > 0;) {
    layers[i].backward(dx, i + 1 == layers.size() ? dlast : dy, state.layers[i], memory,
                       state.inputs);
    final_from(layers[i].first_parameter(), last);
    std::swap(dx, dy);
  }
  embedding.backward(dy, state.ids, memory);
  final_from(0, last);
}

LossSums PhdStage::Impl::read_sums() {
  double host[2] = {0, 0};
  ops.download(host, sums);
  return {.cross_entropy = host[0], .z = host[1]};
}

void PhdStage::Impl::allocate(const StageShape& stage_shape, DType compute_dtype, int64_t num_slots,
                              bool measure) {
  shape = stage_shape;
  dtype = compute_dtype;
  const auto take = [&](const char* name, int64_t bytes) {
    if (measure) return Arena::measuring(name, ops.device());
    blocks.push_back(ops.allocate(bytes));
    return Arena(name, blocks.back().get(), bytes, ops.device());
  };
  const MemoryPlan plan =
      measure ? MemoryPlan{}
              : measure_memory(config, ops.device(), sequence_parallel, shape, dtype);
  fixed.emplace(take("fixed", plan.fixed_bytes));
  scratch.emplace(take("scratch", plan.scratch_bytes));
  slots.clear();
  for (int64_t slot = 0; slot < num_slots; ++slot) {
    MicroBatchState state{.arena = take("saved", plan.saved_bytes_per_slot)};
    state.layers.resize(layers.size());
    slots.push_back(std::move(state));
  }
  const int64_t table_rows =
      shape.positions * (config.phd_rope_position == CopyPosition::flattened ? config.copies() : 1);
  rope_table = fixed->tensor("rope_table", {table_rows, config.head_dim()}, DType::f32);
  ops.rope_table(rope_table, config.rotary_base);
  sums = fixed->tensor("loss_sums", {2}, DType::f64);
}

PhdStage::MemoryPlan PhdStage::Impl::measure_memory(const ModelConfig& model, Device device,
                                                    SequenceParallel mode,
                                                    const StageShape& stage_shape,
                                                    DType compute_dtype) {
  ProcessGroups alone = make_single_process_groups();
  NullBackend null(device);
  ParameterStore store;
  Impl twin(model, store, null, alone, mode);
  store.allocate(null, compute_dtype);
  twin.allocate(stage_shape, compute_dtype, 1, true);
  const auto entries = static_cast<size_t>(stage_shape.positions * stage_shape.sequences);
  MicroBatch batch{.positions = stage_shape.positions, .sequences = stage_shape.sequences};
  batch.tokens.resize(entries);
  batch.targets.resize(entries);
  batch.position_ids.resize(entries);
  batch.document_start.resize(entries);
  MicroBatchState& state = twin.slots[0];
  twin.forward(batch, state);
  twin.backward(state, false);
  MemoryPlan plan{.saved_bytes_per_slot = state.arena.peak_bytes(),
                  .scratch_bytes = twin.scratch->peak_bytes(),
                  .fixed_bytes = twin.fixed->peak_bytes(),
                  .largest = state.arena.peak_contents()};
  for (const auto& item : twin.scratch->peak_contents()) plan.largest.push_back(item);
  std::stable_sort(plan.largest.begin(), plan.largest.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return plan;
}

PhdStage::PhdStage(const ModelConfig& config, ParameterStore& parameters, Backend& backend,
                   ProcessGroups& groups, SequenceParallel sequence_parallel)
    : impl_(std::make_unique<Impl>(config, parameters, backend, groups, sequence_parallel)) {}

PhdStage::~PhdStage() = default;

PhdStage::MemoryPlan PhdStage::plan_memory(const StageShape& shape, DType dtype) {
  return Impl::measure_memory(impl_->config, impl_->ops.device(), impl_->sequence_parallel, shape,
                              dtype);
}

void PhdStage::allocate(const StageShape& shape, DType dtype, int64_t slots) {
  impl_->allocate(shape, dtype, slots, false);
}

void PhdStage::begin_step(const std::vector<MicroBatch>& micro_batches, int64_t loss_tokens,
                          GradientBuffer& gradients) {
  check(loss_tokens > 0, "a global batch without a single loss token cannot be trained on");
  impl_->micro_batches = &micro_batches;
  impl_->gradients = &gradients;
  impl_->loss_scale = 1.0 / static_cast<double>(loss_tokens);
  impl_->ops.zero(impl_->sums);
}

void PhdStage::forward(const PipelineAction& action, const Tensor&, const Tensor&) {
  const auto slot = static_cast<size_t>(action.micro_batch) % impl_->slots.size();
  impl_->forward((*impl_->micro_batches)[static_cast<size_t>(action.micro_batch)],
                 impl_->slots[slot]);
}

void PhdStage::backward(const PipelineAction& action, const Tensor&, const Tensor&, bool last) {
  const auto slot = static_cast<size_t>(action.micro_batch) % impl_->slots.size();
  impl_->backward(impl_->slots[slot], last);
}

LossSums PhdStage::loss_sums() {
  return impl_->read_sums();
}

LossSums PhdStage::evaluate(const MicroBatch& micro_batch) {
  MicroBatchState& state = impl_->slots[0];
  impl_->ops.zero(impl_->sums);
  impl_->load(micro_batch, state);
  const Tensor h = impl_->hidden(state);
  const ArenaScope scope(*impl_->scratch);
  Memory memory{state.arena, *impl_->scratch};
  impl_->loss->forward(h.as_matrix(), state.targets, impl_->sums, memory);
  return impl_->read_sums();
}

std::vector<float> PhdStage::last_copy_logits(const MicroBatch& micro_batch, int64_t position) {
  MicroBatchState& state = impl_->slots[0];
  impl_->load(micro_batch, state);
  const Tensor h = impl_->hidden(state);
  const ArenaScope scope(*impl_->scratch);
  const DType accumulator = accumulator_dtype(impl_->dtype);
  const Shape logits_shape{micro_batch.sequences, impl_->config.padded_vocab_size()};
  const Tensor logits = impl_->scratch->tensor("logits", logits_shape, accumulator);
  impl_->loss->logits(logits, h.slice(position, position + 1).as_matrix());
  const Tensor single = impl_->scratch->tensor("logits_f32", logits_shape, DType::f32);
  impl_->ops.copy(single, logits);
  std::vector<float> host(static_cast<size_t>(single.numel()));
  impl_->ops.download(host.data(), single);
  return host;
}

}  // namespace phalanx
