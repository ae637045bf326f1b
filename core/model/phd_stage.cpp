// PhdStage: slots, buffers between stages, and the actions of a schedule.
#include "core/model/phd_stage.h"

#include <algorithm>

#include "core/model/model_chunk.h"
#include "core/model/replayed_micro_batch.h"
#include "core/model/stage_boundary.h"
#include "kernels/null_backend.h"

namespace phalanx {
namespace {

void keep_largest(PhdStage::MemoryPlan& plan, const Arena& arena) {
  for (const auto& item : arena.peak_contents()) plan.largest.push_back(item);
  std::stable_sort(plan.largest.begin(), plan.largest.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
}

}  // namespace

StageSlots slots_of(const std::vector<PipelineAction>& schedule, int64_t num_chunks) {
  StageSlots slots{.per_chunk = {}};
  for (const PipelineAction& action : schedule)
    slots.micro_batches = std::max(slots.micro_batches, action.micro_batch + 1);
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk)
    slots.per_chunk.push_back(max_in_flight(schedule, chunk));
  for (const PipelineAction& action : schedule)
    slots.split_backward |= action.kind == PipelineActionKind::backward_weight;
  return slots;
}

struct PhdStage::Impl {
  Impl(const ModelConfig& model, ParameterStore& store, Backend& backend,
       ProcessGroups& process_groups, const StageOptions& stage_options);

  void allocate(const StageShape& shape, DType dtype, const StageSlots& wanted,
                const MemoryPlan* plan);
  MemoryPlan measure(const StageShape& shape, DType dtype, const StageSlots& wanted);
  void run_once(const StageShape& shape, bool split);
  ModelChunk::Gradients gradients_of(const PipelineAction& action, bool last);
  ChunkState& state_of(const PipelineAction& action) {
    auto& states = slots[static_cast<size_t>(action.chunk)];
    return states[static_cast<size_t>(action.micro_batch) % states.size()];
  }
  ChunkScratch memory() { return {*scratch, *recomputed}; }
  void begin(std::span<const MicroBatch> batches, const StepSizes& step_sizes);
  Tensor forward(const PipelineAction& action);
  void forward_loss(ModelChunk& chunk, ChunkState& state);
  bool replays(const PipelineAction& action) const;
  void replay_forward(const PipelineAction& action);
  void replay_backward(const PipelineAction& action);
  std::vector<ParameterRange> units_of_chunks() const;
  RouterLoss router_loss() const;
  LossSums read_sums();

  ModelConfig config;
  ParameterStore& parameters;
  Backend& ops;
  ProcessGroups& groups;
  StageOptions options;
  ParameterUnits resident;
  std::vector<ModelChunk> chunks;

  std::vector<std::shared_ptr<void>> blocks;
  std::optional<Arena> fixed;
  std::optional<Arena> scratch;
  std::optional<Arena> recomputed;
  std::optional<SequenceLoader> loader;
  std::vector<std::vector<ChunkState>> slots;  // per chunk
  std::vector<Boundary> boundaries;            // per chunk
  Tensor sums;                                 // [4] f64: loss and z, router's balance and z

  std::span<const MicroBatch> micro_batches;
  StepSizes sizes;
  bool training = true;  // the loss computes its gradient too
  SequenceLoader::DeviceState device = SequenceLoader::DeviceState::idle;
  std::optional<ReplayedMicroBatch> replay;
  ReplayLast replay_last = ReplayLast::no;
  GradientBuffer* gradients = nullptr;
};

PhdStage::Impl::Impl(const ModelConfig& model, ParameterStore& store, Backend& backend,
                     ProcessGroups& process_groups, const StageOptions& stage_options)
    : config(model),
      parameters(store),
      ops(backend),
      groups(process_groups),
      options(stage_options) {
  if (options.stages.empty()) options.stages = {{0, config.num_layers}};
  const auto num_stages = static_cast<int64_t>(options.stages.size());
  const int pp = groups.pp->size();
  check(num_stages % pp == 0, num_stages, " stages cannot lie on ", pp, " pipeline ranks");
  Parameter* table = nullptr;
  chunks.reserve(static_cast<size_t>(num_stages / pp));
  for (int64_t stage = groups.pp->rank(); stage < num_stages; stage += pp) {
    const int64_t first_unit = static_cast<int64_t>(units_of_chunks().size());
    chunks.emplace_back(ModelChunk::Context{config, parameters, ops, groups,
                                            options.sequence_parallel, options.recompute, resident},
                        ModelChunk::Place{.stage = stage,
                                          .num_stages = num_stages,
                                          .layers = options.stages[static_cast<size_t>(stage)],
                                          .tied_table = table,
                                          .first_unit = first_unit});
    if (chunks.back().table() != nullptr) table = chunks.back().table();
  }
}

std::vector<ParameterRange> PhdStage::Impl::units_of_chunks() const {
  std::vector<ParameterRange> list;
  for (const ModelChunk& chunk : chunks)
    for (const ParameterRange& unit : chunk.units()) list.push_back(unit);
  return list;
}

// Without a plan, on measuring arenas.
void PhdStage::Impl::allocate(const StageShape& shape, DType dtype, const StageSlots& wanted,
                              const MemoryPlan* plan) {
  check(wanted.per_chunk.size() == chunks.size(), "slots for ", wanted.per_chunk.size(),
        " chunks, but the stage has ", chunks.size());
  const auto take = [&](const char* name, int64_t bytes) {
    if (plan == nullptr) return Arena::measuring(name, ops.device());
    blocks.push_back(ops.allocate(bytes));
    Arena arena(name, blocks.back().get(), bytes, ops.device());
    // How many rows a rank's experts get is known only when routers have spoken.
    if (config.num_experts > 0)
      arena.set_overflow([this](int64_t more) { return ops.allocate(more); });
    return arena;
  };
  fixed.emplace(take("fixed", plan ? plan->fixed_bytes : 0));
  scratch.emplace(take("scratch", plan ? plan->scratch_bytes : 0));
  recomputed.emplace(take("recomputed", plan ? plan->recomputed_bytes : 0));
  slots.clear();
  for (size_t c = 0; c < chunks.size(); ++c) {
    auto& states = slots.emplace_back();
    for (int64_t slot = 0; slot < wanted.per_chunk[c]; ++slot) {
      ChunkState state{.arena = take("saved", plan ? plan->saved_bytes_per_slot[c] : 0)};
      state.layers.resize(chunks[c].num_layers());
      state.layer_inputs.resize(chunks[c].num_layers());
      states.push_back(std::move(state));
    }
  }
  const int64_t table_rows =
      shape.positions * (config.phd_rope_position == CopyPosition::flattened ? config.copies() : 1);
  const Tensor rope_table =
      fixed->tensor("rope_table", {table_rows, config.head_dim()}, DType::f32);
  ops.rope_table(rope_table, config.rotary_base);
  sums = fixed->tensor("loss_sums", {4}, DType::f64);
  loader.emplace(ops, *groups.cp, shape, rope_table);
  if (plan != nullptr) loader->allocate(wanted.micro_batches);
  const TensorParallelContext parallel{parameters, ops, *groups.tp, options.sequence_parallel};
  const Shape passed{loader->local_positions() / parallel.row_factor(), shape.sequences, 0,
                     config.hidden_size};
  boundaries.clear();
  for (size_t c = 0; c < chunks.size(); ++c)
    boundaries.push_back(make_boundary(chunks[c], passed, std::ssize(slots[c]), *fixed, dtype));
}

// Each layer and micro-batch counts alike.
RouterLoss PhdStage::Impl::router_loss() const {
  const auto terms = static_cast<double>(config.num_layers * sizes.micro_batches);
  return {.balance_scale = config.moe_aux_loss_coeff / terms,
          .z_scale = config.moe_z_loss_coeff / terms,
          .sums = sums.slice(2, 4)};
}

LossSums PhdStage::Impl::read_sums() {
  double host[4] = {0, 0, 0, 0};
  ops.download(host, sums);
  device = SequenceLoader::DeviceState::idle;
  return {.cross_entropy = host[0], .z = host[1], .router_balance = host[2], .router_z = host[3]};
}

void PhdStage::Impl::begin(std::span<const MicroBatch> batches, const StepSizes& step_sizes) {
  micro_batches = batches;
  sizes = step_sizes;
  loader->begin_step(batches, device);
  device = SequenceLoader::DeviceState::busy;
}

void PhdStage::Impl::forward_loss(ModelChunk& chunk, ChunkState& state) {
  const Tensor loss = sums.slice(0, 2);
  if (!training) return chunk.forward_loss(state, loss, memory());
  chunk.forward_loss_gradient(
      state, loss,
      {.loss_scale = 1.0 / static_cast<double>(sizes.loss_tokens), .z_loss = config.z_loss_coeff},
      memory());
}

bool PhdStage::Impl::replays(const PipelineAction& action) const {
  const bool last = action.micro_batch + 1 == std::ssize(micro_batches);
  return replay && training && (!last || replay_last == ReplayLast::yes);
}

void PhdStage::Impl::replay_forward(const PipelineAction& action) {
  ChunkState& state = state_of(action);
  loader->load_fixed(action.micro_batch, state);
  replay->forward({.loss_tokens = sizes.loss_tokens,
                   .position_ids = static_cast<bool>(state.inputs.position_ids),
                   .document_start = static_cast<bool>(state.inputs.document_start)},
                  [&] { forward_loss(chunks.front(), state); });
}

void PhdStage::Impl::replay_backward(const PipelineAction& action) {
  replay->backward(
      [&] { chunks.front().backward(state_of(action), gradients_of(action, false), memory()); });
}

Tensor PhdStage::Impl::forward(const PipelineAction& action) {
  if (replays(action)) {
    replay_forward(action);
    return {};
  }
  const auto index = static_cast<size_t>(action.chunk);
  ModelChunk& chunk = chunks[index];
  ChunkState& state = state_of(action);
  loader->load(action.micro_batch, state);
  state.inputs.router_loss = router_loss();
  if (!chunk.is_first()) state.input = turn(boundaries[index].inputs, action.micro_batch);
  if (!chunk.is_last()) {
    const Tensor output = turn(boundaries[index].outputs, action.micro_batch);
    chunk.forward(state, output, memory());
    return output;
  }
  forward_loss(chunk, state);
  return {};
}

ModelChunk::Gradients PhdStage::Impl::gradients_of(const PipelineAction& action, bool last) {
  const Boundary& boundary = boundaries[static_cast<size_t>(action.chunk)];
  const ModelChunk& chunk = chunks[static_cast<size_t>(action.chunk)];
  ModelChunk::Gradients result{.split = action.kind == PipelineActionKind::backward_input,
                               .finals = last ? gradients : nullptr};
  if (!chunk.is_first()) result.dinput = turn(boundary.dinputs, action.micro_batch);
  if (!chunk.is_last()) result.doutput = turn(boundary.doutputs, action.micro_batch);
  return result;
}

// Every chunk forward and backward once, with every optional input.
void PhdStage::Impl::run_once(const StageShape& shape, bool split) {
  const auto entries = static_cast<size_t>(shape.positions * shape.sequences);
  MicroBatch batch{.positions = shape.positions, .sequences = shape.sequences};
  batch.tokens.resize(entries);
  batch.targets.resize(entries);
  batch.position_ids.resize(entries);
  batch.document_start.resize(entries);
  begin({&batch, 1}, {.loss_tokens = 1, .micro_batches = 1});
  for (int64_t chunk = 0; chunk < static_cast<int64_t>(chunks.size()); ++chunk) {
    PipelineAction action{PipelineActionKind::forward, 0, chunk};
    forward(action);
    action.kind = split ? PipelineActionKind::backward_input : PipelineActionKind::backward;
    ModelChunk& model = chunks[static_cast<size_t>(chunk)];
    model.backward(state_of(action), gradients_of(action, false), memory());
    model.backward_weight(state_of(action), nullptr, memory());
  }
}

PhdStage::MemoryPlan PhdStage::Impl::measure(const StageShape& shape, DType dtype,
                                             const StageSlots& wanted) {
  ProcessGroups silent = make_measuring_process_groups(groups);
  NullBackend null(ops.device());
  ParameterStore store;
  Impl twin(config, store, null, silent, options);
  store.allocate(null, dtype);
  twin.allocate(shape, dtype, wanted, nullptr);
  twin.run_once(shape, wanted.split_backward);
  MemoryPlan plan{.scratch_bytes = twin.scratch->peak_bytes(),
                  .recomputed_bytes = twin.recomputed->peak_bytes(),
                  .fixed_bytes = twin.fixed->peak_bytes(),
                  .batch_bytes = twin.loader->bytes(wanted.micro_batches)};
  for (const auto& states : twin.slots) {
    plan.saved_bytes_per_slot.push_back(states.front().arena.peak_bytes());
    keep_largest(plan, states.front().arena);
  }
  keep_largest(plan, *twin.scratch);
  return plan;
}

PhdStage::PhdStage(const ModelConfig& config, ParameterStore& parameters, Backend& backend,
                   ProcessGroups& groups, const StageOptions& options)
    : impl_(std::make_unique<Impl>(config, parameters, backend, groups, options)) {}

PhdStage::~PhdStage() = default;

std::vector<ParameterRange> PhdStage::units() const {
  return impl_->units_of_chunks();
}

void PhdStage::set_units(ParameterUnits& units) {
  for (ModelChunk& chunk : impl_->chunks) chunk.set_units(units);
}

int64_t PhdStage::num_chunks() const {
  return static_cast<int64_t>(impl_->chunks.size());
}

PhdStage::MemoryPlan PhdStage::plan_memory(const StageShape& shape, DType dtype,
                                           const StageSlots& slots) {
  return impl_->measure(shape, dtype, slots);
}

void PhdStage::allocate(const StageShape& shape, DType dtype, const StageSlots& slots) {
  const MemoryPlan plan = impl_->measure(shape, dtype, slots);
  impl_->allocate(shape, dtype, slots, &plan);
}

void PhdStage::replay_micro_batches(ReplayLast last) {
  const bool alone = impl_->chunks.size() == 1 && impl_->groups.pp->size() == 1 &&
                     impl_->slots.front().size() == 1;
  check(alone, "only a stage alone with one micro-batch in flight can be replayed");
  impl_->replay.emplace(impl_->ops);
  impl_->replay_last = last;
}

int64_t PhdStage::peak_saved_bytes() const {
  int64_t peak = 0;
  for (const auto& states : impl_->slots)
    for (const ChunkState& state : states) peak = std::max(peak, state.arena.peak_bytes());
  return peak;
}

void PhdStage::begin_step(std::span<const MicroBatch> micro_batches, const StepSizes& sizes,
                          GradientBuffer& gradients) {
  check(sizes.loss_tokens > 0, "a global batch without a single loss token cannot be trained on");
  impl_->gradients = &gradients;
  impl_->training = true;
  impl_->begin(micro_batches, sizes);
  impl_->ops.zero(impl_->sums);
}

Tensor PhdStage::forward_buffer(int64_t micro_batch, int64_t chunk) {
  return turn(impl_->boundaries[static_cast<size_t>(chunk)].inputs, micro_batch);
}

Tensor PhdStage::backward_buffer(int64_t micro_batch, int64_t chunk) {
  return turn(impl_->boundaries[static_cast<size_t>(chunk)].doutputs, micro_batch);
}

Tensor PhdStage::forward(const PipelineAction& action) {
  return impl_->forward(action);
}

Tensor PhdStage::backward(const PipelineAction& action, bool last) {
  if (impl_->replays(action)) {
    impl_->replay_backward(action);
    return {};
  }
  const ModelChunk::Gradients gradients = impl_->gradients_of(action, last);
  impl_->chunks[static_cast<size_t>(action.chunk)].backward(impl_->state_of(action), gradients,
                                                            impl_->memory());
  return gradients.dinput;
}

void PhdStage::backward_weight(const PipelineAction& action, bool last) {
  impl_->chunks[static_cast<size_t>(action.chunk)].backward_weight(
      impl_->state_of(action), last ? impl_->gradients : nullptr, impl_->memory());
}

LossSums PhdStage::loss_sums() {
  return impl_->read_sums();
}

LossSums PhdStage::evaluate(const MicroBatch& micro_batch) {
  impl_->training = false;
  impl_->begin({&micro_batch, 1}, impl_->sizes);
  impl_->ops.zero(impl_->sums);
  std::vector<PipelineAction> actions;
  for (int64_t chunk = 0; chunk < num_chunks(); ++chunk)
    actions.push_back({PipelineActionKind::forward, 0, chunk});
  run_pipeline(actions, *this, *impl_->groups.pp, num_chunks());
  return impl_->read_sums();
}

std::vector<float> PhdStage::last_copy_logits(const MicroBatch& micro_batch, int64_t position) {
  check(impl_->groups.pp->size() == 1 && impl_->groups.cp->size() == 1 && num_chunks() == 1,
        "logits of one position need the whole model and sequence on one rank");
  ChunkState& state = impl_->slots[0][0];
  impl_->begin({&micro_batch, 1}, impl_->sizes);
  impl_->loader->load(0, state);
  const Tensor h = impl_->chunks[0].hidden(state, impl_->memory());
  const ArenaScope scope(*impl_->scratch);
  const Shape logits_shape{micro_batch.sequences, impl_->config.padded_vocab_size()};
  const Tensor logits = impl_->scratch->tensor("logits", logits_shape, accumulator_dtype(h.dtype));
  impl_->chunks[0].logits(logits, h.slice(position, position + 1).as_matrix());
  const Tensor single = impl_->scratch->tensor("logits_f32", logits_shape, DType::f32);
  impl_->ops.copy(single, logits);
  std::vector<float> host(static_cast<size_t>(single.numel()));
  impl_->ops.download(host.data(), single);
  impl_->device = SequenceLoader::DeviceState::idle;
  return host;
}

}  // namespace phalanx
