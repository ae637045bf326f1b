// Builds and runs a training run.
#include "core/train/trainer.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "core/layout_validate.h"
#include "core/model/model_cost.h"
#include "core/train/config_changes.h"
#include "core/train/memory_options.h"
#include "core/train/peak_flops.h"
#include "core/train/stop_flag.h"
#include "core/train/weights_file.h"

namespace phalanx {
namespace {

constexpr double kTera = 1e12;

double flops_per_token(const RunConfig& config) {
  const ModelCost cost = model_cost(config.model, config.data.seq_length);
  return cost.forward_flops_per_token + cost.backward_flops_per_token;
}

/// A fresh start in the same folder begins new records and keeps the last ones.
void set_aside(const std::string& path) {
  if (!std::filesystem::exists(path)) return;
  std::filesystem::remove_all(path + ".previous");
  std::filesystem::rename(path, path + ".previous");
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::trunc);
  file << text << std::flush;
  check(file.good(), "cannot write ", path, "; is the run folder writable and the disk not full?");
}

/// For people, and for telling whether two runs must agree bit for bit.
std::string layout_text(const std::string& config_ini, const ProcessGroups& groups) {
  const std::string options = changed_from_default(config_ini, "Parallelism");
  return fmt::format("dp {}{}{}", groups.dp->size(), options.empty() ? "" : ", ", options);
}

RunSetup checked_setup(const RunConfig& config, const ProcessGroups& groups) {
  RunSetup setup = make_run_setup(config, groups.dp->size());
  // Again, now that the vocabulary and the batch are known.
  const auto problems = validate_layout(setup.config, groups.world->size());
  check_usage(problems.empty(), fmt::format("{}", fmt::join(problems, "\n")));
  check_usage(!config.training.run_dir.empty(),
              "--run-dir is needed: the folder for the run's "
              "files");
  check_usage(setup.config.training.train_iters > 0, "train-iters ",
              setup.config.training.train_iters,
              " must be at least 1; give --train-iters, or --train-samples of at least one global "
              "batch");
  return setup;
}

}  // namespace

Trainer::Trainer(const RunConfig& config, Backend& backend, ProcessGroups& groups)
    : setup_(checked_setup(config, groups)),
      backend_(backend),
      groups_(groups),
      stage_(setup_.config.model, store_, backend, groups,
             stage_options(setup_.config.model, setup_.config.parallel,
                           setup_.config.data.seq_length, groups.pp->rank())),
      bubble_(groups) {
  const TrainingConfig& training = setup_.config.training;
  order_samples_ = training.train_iters * training.global_batch_size;
  check_batch_plan(train_plan(order_samples_));
  schedule_ = make_schedule(setup_.config.parallel.pipeline_schedule,
                            {.stage = groups.pp->rank(),
                             .num_stages = groups.pp->size(),
                             .num_chunks = stage_.num_chunks(),
                             .num_micro_batches = num_micro_batches()});
  memory_ = memory_needs(stage_, memory_question());
  most_memory_ = groups.world->all_reduce(memory_.total(), ReduceOp::max);
  check_memory(memory_, backend.info(), *groups.world, [&](const MemoryRoom& room) {
    return options_that_fit(setup_.config, groups.world->size(), backend.device(), room);
  });
  open_data();
  allocate();
}

BatchPlan Trainer::train_plan(int64_t order_samples) const {
  return make_batch_plan(setup_.config, *groups_.dp, order_samples);
}

void Trainer::open_data() {
  const RunConfig& config = setup_.config;
  BatchPlan plan = train_plan(order_samples_);
  loader_ = make_batch_loader(config.data, DataSplit::train, plan, setup_.vocabulary);
  plan.num_samples = config.training.eval_iters * config.training.global_batch_size;
  if (config.training.eval_interval > 0 && has_data(config.data, DataSplit::valid))
    validation_set_ = std::make_unique<ValidationSet>(config.data, plan, setup_.vocabulary);
}

int64_t Trainer::num_micro_batches() const {
  const TrainingConfig& training = setup_.config.training;
  return training.global_batch_size / (training.micro_batch_size * groups_.dp->size());
}

MemoryQuestion Trainer::memory_question() const {
  return {.store = store_,
          .groups = groups_,
          .parallel = setup_.config.parallel,
          .shape = {setup_.config.data.seq_length, setup_.config.training.micro_batch_size},
          .dtype = compute_dtype(setup_.config.training.precision),
          .saves = setup_.config.checkpoint.save_interval > 0,
          .slots = slots_of(schedule_, stage_.num_chunks()),
          .device = backend_.device()};
}

PipelineQuestion Trainer::pipeline_question() const {
  return {.model = setup_.config.model,
          .parallel = setup_.config.parallel,
          .seq_length = setup_.config.data.seq_length,
          .num_micro_batches = num_micro_batches()};
}

void Trainer::allocate() {
  const RunConfig& config = setup_.config;
  const MemoryQuestion plan = memory_question();
  backend_.reserve(memory_.block());
  // While the block is still empty: the operands of what is timed lie in it.
  const double given = config.training.peak_tflops * kTera;
  const int64_t room = backend_.device() == Device::cpu ? std::numeric_limits<int64_t>::max()
                                                        : memory_.block() - memory_.workspace;
  peak_flops_ = given > 0 ? given : measure_peak_flops(backend_, plan.dtype, room);
  const GradientBuffer::Options options = gradient_options(stage_, config.parallel);
  store_.allocate(backend_, plan.dtype, options.units);
  gradients_ = std::make_unique<GradientBuffer>(store_, backend_, groups_, options);
  stage_.set_units(gradients_->units());
  optimizer_ = std::make_unique<DistributedOptimizer>(store_, *gradients_, backend_, groups_,
                                                      config.optimizer);
  optimizer_->initialise(static_cast<uint64_t>(config.training.seed));
  stage_.allocate(plan.shape, plan.dtype, plan.slots);
  if (config.training.cuda_graph) {
    const bool beside = groups_.dp_cp->size() > 1 && config.parallel.overlap_grad_reduce;
    stage_.replay_micro_batches(beside ? PhdStage::ReplayLast::no : PhdStage::ReplayLast::yes);
  }
  state_.emplace(TrainState{.config = {.optimizer = config.optimizer,
                                       .train_iters = config.training.train_iters,
                                       .z_loss_coeff = config.model.z_loss_coeff,
                                       .num_layers = config.model.num_layers,
                                       .max_skipped_in_row = config.training.max_skipped_in_row},
                            .pipeline = {schedule_, *groups_.pp, stage_.num_chunks()},
                            .stage = stage_,
                            .gradients = *gradients_,
                            .optimizer = *optimizer_,
                            .groups = groups_});
  if (config.training.replica_check_interval > 0)
    replica_check_ = std::make_unique<ReplicaCheck>(held_weights(store_, optimizer_->shards()),
                                                    backend_, *groups_.world);
  if (!config.training.profile.empty())
    profile_ = std::make_unique<StepProfile>(
        parse_step_range(config.training.profile), config.training.run_dir + "/profile",
        TraceOwner{groups_.world->rank(), groups_.world->size(), backend_.device()}, backend_);
}

std::string Trainer::describe(const DeviceMesh& mesh) const {
  const RunConfig& config = setup_.config;
  const TrainingConfig& training = config.training;
  const ParameterCount count = parameter_count(config.model);
  const ModelCost cost = model_cost(config.model, config.data.seq_length);
  std::string text;
  const auto add = [&](const std::string& line) { text += " " + line + "\n"; };
  add(fmt::format("ranks: {} (data parallel {}, tensor {}{}, pipeline {}, context {})",
                  mesh.world_size(), mesh.size(MeshAxis::dp), mesh.size(MeshAxis::tp),
                  config.parallel.sequence_parallel ? " with sequence parallel" : "",
                  mesh.size(MeshAxis::pp), mesh.size(MeshAxis::cp)));
  if (config.model.num_experts > 0)
    add(fmt::format(
        "experts: {}, {} per token (expert parallel {}, expert tensor {}, expert data {})",
        config.model.num_experts, config.model.moe_router_topk, mesh.size(MeshAxis::ep),
        mesh.size(MeshAxis::expert_tp), mesh.size(MeshAxis::expert_dp)));
  text += pipeline_text(pipeline_question());
  add(fmt::format("parameters: {} (embedding {}, attention {}, feed-forward {}, norms {}, head {})",
                  count.total, count.embedding, count.attention, count.feed_forward, count.norms,
                  count.head));
  add(fmt::format("model FLOPs per token: {:.4e} forward, {:.4e} backward",
                  cost.forward_flops_per_token, cost.backward_flops_per_token));
  add(fmt::format("steps: {} of {} sequences x {} tokens, {} micro-batch(es) per rank",
                  training.train_iters, training.global_batch_size, config.data.seq_length,
                  num_micro_batches()));
  add(fmt::format("peak of one rank: {:.4f} TFLOP/s ({})", peak_flops_ / kTera,
                  training.peak_tflops > 0 ? "given" : "measured"));
  if (validation_set_ != nullptr)
    add(fmt::format("validation samples: {}", validation_set_->num_samples()));
  return text + memory_table(memory_) +
         fmt::format("\n   {:<44}{:>12.1f}", "most of any rank",
                     static_cast<double>(most_memory_) / (1024.0 * 1024.0));
}

void Trainer::open_logs(const std::string& config_ini) {
  if (!is_first_rank()) return;
  const TrainingConfig& training = setup_.config.training;
  std::filesystem::create_directories(training.run_dir);
  // Weights of an earlier run must not be taken for this one's before this one has written its own.
  set_aside(weights_path(training.run_dir));
  write_text(training.run_dir + "/config.ini", config_ini);
  const std::string metrics = training.run_dir + "/metrics.jsonl";
  if (!resumed_) set_aside(metrics);
  const std::string tensorboard = training.tensorboard_dir.empty()
                                      ? training.run_dir + "/tensorboard"
                                      : training.tensorboard_dir;
  if (!resumed_) set_aside(tensorboard);
  log_ = std::make_unique<MetricsLog>(RunFacts{.train_iters = training.train_iters,
                                               .global_batch_size = training.global_batch_size,
                                               .log_interval = training.log_interval,
                                               .num_ranks = groups_.world->size(),
                                               .flops_per_token = flops_per_token(setup_.config),
                                               .peak_flops = peak_flops_,
                                               .log_z_loss = setup_.config.model.z_loss_coeff != 0,
                                               .log_router = setup_.config.model.num_experts > 0},
                                      MetricsLog::Files{metrics, tensorboard});
  communication_.emplace(groups_);
  checkpoints_->set_log({.message = [this](const std::string& text) { log_->message(text); },
                         .record = [this](const std::string& json) { log_->record(json); }});
}

void Trainer::resume(const std::string& config_ini) {
  checkpoints_ = std::make_unique<RunCheckpoints>(
      RunIdentity{.config = setup_.config,
                  .config_ini = config_ini,
                  .tokenizer_hash = setup_.vocabulary.tokenizer_hash,
                  .layout = layout_text(config_ini, groups_),
                  .order_samples = order_samples_},
      *state_, store_, backend_);
  const std::optional<ResumePoint> point = checkpoints_->resume();
  if (point) reorder_data(*point);
  result_.steps = counters().step;
  resumed_ = point.has_value();
}

/// The loader goes on where the checkpoint's did.
void Trainer::reorder_data(const ResumePoint& point) {
  if (point.order_samples != order_samples_) {
    order_samples_ = point.order_samples;
    loader_ = make_batch_loader(setup_.config.data, DataSplit::train, train_plan(order_samples_),
                                setup_.vocabulary);
  }
  loader_->seek(counters().consumed_samples);
}

void Trainer::step() {
  const auto begin = std::chrono::steady_clock::now();
  bubble_.begin_step();
  if (communication_) communication_->take();  // what an evaluation moved is not the step's
  const GlobalBatch& batch = loader_->next();
  if (profile_) profile_->begin_step(counters().step + 1);
  last_metrics_ = train_step(*state_, batch);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (profile_) profile_->end_step(counters().step);  // after the clock: it writes files
  slowest_step_ = std::max(slowest_step_, seconds);
  bubble_.end_step(seconds);
  if (log_ != nullptr) log_->step(state_->counters, last_metrics_, seconds, communication_->take());
  stop_if_diverged(*state_, last_metrics_);
  if (replica_check_ && counters().step % setup_.config.training.replica_check_interval == 0)
    replica_check_->run();
  if (!last_metrics_.skipped) result_.final_loss = last_metrics_.loss;
  result_.steps = state_->counters.step;
  if (checkpoints_) checkpoints_->after_step(batch, last_metrics_);
}

/// A signal may reach one rank only, or ranks at different steps, and clocks differ: all must stop
/// at the same step.
StopReason Trainer::agreed_stop() {
  StopReason reason = stop_requested().load() ? StopReason::signal : StopReason::none;
  const double limit = setup_.config.checkpoint.exit_duration_in_mins * 60;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - began_;
  // One more step and the last save must still fit.
  if (reason == StopReason::none && limit > 0 && checkpoints_ &&
      elapsed.count() + slowest_step_ + checkpoints_->seconds_to_save() >= limit)
    reason = StopReason::duration;
  return static_cast<StopReason>(
      groups_.world->all_reduce(static_cast<int64_t>(reason), ReduceOp::max));
}

void Trainer::evaluate() {
  if (validation_set_ == nullptr) return;
  // A signal ends an evaluation too: there may be little time left.
  const auto stop = [this] { return agreed_stop() != StopReason::none; };
  const std::optional<ValidationMetrics> metrics = validation_set_->evaluate(stage_, groups_, stop);
  if (!metrics) return;
  result_.validation_loss = metrics->loss;
  if (log_ != nullptr) log_->validation(state_->counters, *metrics);
}

void Trainer::log_bubble() {
  if (groups_.pp->size() == 1) return;
  const double measured = bubble_.fraction();
  if (log_ != nullptr)
    log_->pipeline(counters(), predicted_bubble_fraction(pipeline_question()), measured);
}

void Trainer::write_weights(const std::string& config_ini) {
  const WeightsInfo info{.config_ini = config_ini,
                         .step = state_->counters.step,
                         .consumed_samples = state_->counters.consumed_samples,
                         .tokenizer_hash = setup_.vocabulary.tokenizer_hash};
  const std::string path = weights_path(setup_.config.training.run_dir);
  save_weights(path, info, {store_, optimizer_->shards(), backend_, *groups_.world});
  if (log_ != nullptr) log_->message("weights written to " + path);
}

void Trainer::say_why_stopped() const {
  if (log_ == nullptr || result_.stopped == StopReason::none) return;
  const int64_t step = counters().step;
  const bool saves = step > 0 && setup_.config.checkpoint.save_interval > 0;
  log_->message(fmt::format("stopped {} after step {} of {}; {}",
                            result_.stopped == StopReason::signal
                                ? "by a signal"
                                : "because --exit-duration-in-mins is nearly over,",
                            step, setup_.config.training.train_iters,
                            saves       ? "saving"
                            : step == 0 ? "there is nothing to save"
                                        : "--save-interval 0: no checkpoint is saved"));
}

TrainingResult Trainer::run(const std::string& config_ini) {
  resume(config_ini);
  open_logs(config_ini);
  const TrainingConfig& training = setup_.config.training;
  if (log_ != nullptr && counters().step >= training.train_iters)
    log_->message(fmt::format("all {} steps had been done before", training.train_iters));
  int64_t evaluated_step = -1;
  while (counters().step < training.train_iters) {
    result_.stopped = agreed_stop();
    if (result_.stopped != StopReason::none) break;
    step();
    if (training.eval_interval <= 0 || counters().step % training.eval_interval != 0) continue;
    evaluate();
    evaluated_step = counters().step;
  }
  say_why_stopped();
  if (profile_) profile_->finish();
  log_bubble();
  checkpoints_->save_last();
  // A stopped run has little time left, so it does not evaluate.
  if (result_.stopped == StopReason::none && evaluated_step != counters().step) evaluate();
  write_weights(config_ini);
  return result_;
}

}  // namespace phalanx
