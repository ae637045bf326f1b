// Builds and runs a training run.
#include "core/train/trainer.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <limits>

#include "core/checkpoint/fault_hook.h"
#include "core/layout_validate.h"
#include "core/run_files.h"
#include "core/train/memory_options.h"
#include "core/train/node_name.h"
#include "core/train/peak_flops.h"
#include "core/train/preflight.h"
#include "core/train/stop_flag.h"
#include "core/train/weights_file.h"
#include "kernels/base/flight_recorder.h"
#include "kernels/base/log.h"

namespace phalanx {
namespace {

constexpr double kTera = 1e12;

/// Collective: one answer, because file systems may show a new file to some ranks later.
void refuse_to_start_stopped(const std::string& run_dir, ProcessGroup& world) {
  const std::string path = stop_file_path(run_dir);
  const bool found = world.rank() == 0 && std::filesystem::exists(path);
  check_usage(world.all_reduce(int64_t{found}, ReduceOp::max) == 0, path,
              " is there, so that this run is not to go on; remove it to train");
}

RunSetup checked_setup(const RunConfig& config, const ProcessGroups& groups) {
  RunSetup setup = make_run_setup(config, groups.dp->size());
  // Again, now that the vocabulary and the batch are known.
  const auto problems = validate_layout(setup.config, groups.world->size());
  check_usage(problems.empty(), fmt::format("{}", fmt::join(problems, "\n")));
  check_usage(!config.training.run_dir.empty(),
              "--run-dir is needed: the folder for the run's "
              "files");
  refuse_to_start_stopped(config.training.run_dir, *groups.world);
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
      bubble_(groups),
      clock_(groups),
      rank_times_(*groups.world),
      places_(gather_rank_places(groups, node_name())) {
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
  const FlightRange opening(flight_entry(FlightKind::phase, "open the data"));
  fault_moment("data", groups_.world->rank());
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
  const FlightRange allocating(flight_entry(FlightKind::phase, "allocate and initialise"));
  const RunConfig& config = setup_.config;
  const MemoryQuestion plan = memory_question();
  backend_.reserve(memory_.block());
  // While the block is still empty: the operands of what is timed lie in it.
  const double given = config.training.peak_tflops * kTera;
  const int64_t room = backend_.device() == Device::cpu ? std::numeric_limits<int64_t>::max()
                                                        : memory_.block() - memory_.workspace;
  const bool tests = wants_preflight(config.training.preflight, groups_.world->size(),
                                     std::getenv("SLURM_JOB_ID"));
  if (tests) groups_.world->barrier();  // all compute at the same time
  const double measured = tests || given == 0 ? measure_peak_flops(backend_, plan.dtype, room) : 0;
  peak_flops_ = given > 0 ? given : measured;
  if (tests)
    preflight_ =
        run_preflight(backend_, *groups_.world, places_,
                      {.peak_flops = measured, .room = room, .run_dir = config.training.run_dir});
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

void Trainer::resume(const std::string& config_ini) {
  const FlightRange resuming(flight_entry(FlightKind::phase, "resume"));
  checkpoints_ = std::make_unique<RunCheckpoints>(
      RunIdentity{.config = setup_.config,
                  .config_ini = config_ini,
                  .tokenizer_hash = setup_.vocabulary.tokenizer_hash,
                  .layout = layout_text(config_ini, groups_),
                  .order_samples = order_samples_},
      *state_, store_, backend_);
  const std::optional<ResumePoint> point = checkpoints_->resume();
  if (point) reorder_data(*point);
  if (point) resumed_from_ = point->checkpoint;
  TrainCounters& counted = state_->counters;
  if (counted.skipped_in_row >= state_->config.max_skipped_in_row) {
    // Else the next bad step would end the run again at once.
    if (is_first_rank())
      log_info("the run had diverged before step {}: skipped steps are counted anew", counted.step);
    counted.skipped_in_row = 0;
  }
  result_.steps = counters().step;
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
  flight_step(counters().step + 1);
  bubble_.begin_step();
  if (communication_) communication_->take();  // what an evaluation moved is not the step's
  clock_.begin_step();
  const GlobalBatch& batch = loader_->next();
  clock_.data_is_there();
  if (profile_) profile_->begin_step(counters().step + 1);
  fault_slowness("step", groups_.world->rank());
  last_metrics_ = train_step(*state_, batch);
  const StepTimes times = clock_.end_step();
  if (profile_) profile_->end_step(counters().step);  // after the clock: it writes files
  slowest_step_ = std::max(slowest_step_, times.step);
  bubble_.end_step(times.step);
  rank_times_.add(times);
  updates_ += last_metrics_.skipped ? 0 : 1;
  if (log_ != nullptr) log_->step(state_->counters, last_metrics_, times, communication_->take());
  result_.steps = state_->counters.step;
  stop_if_diverged(*state_, last_metrics_);
  if (replica_check_ && counters().step % setup_.config.training.replica_check_interval == 0)
    replica_check_->run();
  if (!last_metrics_.skipped) result_.final_loss = last_metrics_.loss;
  if (!checkpoints_) return;
  clock_.begin_save();
  checkpoints_->after_step(batch, last_metrics_);
  clock_.end_save();
}

bool Trainer::stop_file_is_there() {
  if (!is_first_rank()) return false;
  const auto now = std::chrono::steady_clock::now();
  if (now - stop_file_looked_ < std::chrono::seconds(1)) return false;
  stop_file_looked_ = now;
  std::error_code unreadable;  // then it is not there
  return std::filesystem::exists(stop_file_path(setup_.config.training.run_dir), unreadable);
}

StopReason Trainer::own_stop_reason() {
  if (stop_file_is_there()) return StopReason::stop_file;
  if (stop_requested().load()) return StopReason::signal;
  const double limit = setup_.config.checkpoint.exit_duration_in_mins * 60;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - began_;
  // One more step and the last save must still fit.
  const bool over = limit > 0 && checkpoints_ &&
                    elapsed.count() + slowest_step_ + checkpoints_->seconds_to_save() >= limit;
  return over ? StopReason::duration : StopReason::none;
}

/// A signal may reach one rank only, or ranks at different steps, and clocks differ: all must stop
/// at the same step. The same number says whether rank 0's clock asks for the ranks' times.
StopReason Trainer::agreed_stop() {
  const bool asks = is_first_rank() && groups_.world->size() > 1 && rank_times_.is_due();
  const int64_t agreed = groups_.world->all_reduce(
      2 * static_cast<int64_t>(own_stop_reason()) + int64_t{asks}, ReduceOp::max);
  times_due_ = agreed % 2 == 1;
  return static_cast<StopReason>(agreed / 2);
}

void Trainer::evaluate() {
  if (validation_set_ == nullptr) return;
  // A signal ends an evaluation too: there may be little time left.
  const auto stop = [this] { return agreed_stop() != StopReason::none; };
  const auto begin = std::chrono::steady_clock::now();
  const std::optional<ValidationMetrics> metrics = validation_set_->evaluate(stage_, groups_, stop);
  if (!metrics) return;
  result_.validation_loss = metrics->loss;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  if (log_ != nullptr) log_->validation(state_->counters, *metrics, seconds.count());
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

void Trainer::train() {
  const TrainingConfig& training = setup_.config.training;
  while (counters().step < training.train_iters) {
    result_.stopped = agreed_stop();
    if (result_.stopped != StopReason::none) break;
    if (times_due_) report_rank_times();
    step();
    if (training.eval_interval <= 0 || counters().step % training.eval_interval != 0) continue;
    evaluate();
    evaluated_step_ = counters().step;
  }
}

/// All ranks are here with the same error. The weights are those before the bad steps, and the data
/// of these is behind: to go on from here is to leave them out. They may be ruined all the same, so
/// no older checkpoint makes room, and a start without one good step saves nothing.
void Trainer::save_diverged(const DivergedError& error) {
  result_.stopped = StopReason::diverged;
  diverged_ = error.what();
  if (is_first_rank()) log_info("{}", diverged_);
  if (updates_ == 0) return;
  clock_.begin_save();
  const std::string problem = checkpoints_->save_doubtful();
  clock_.end_save();
  if (is_first_rank() && !problem.empty()) log_info("{}", problem);
}

void Trainer::finish(const std::string& config_ini) {
  if (log_ != nullptr && result_.stopped != StopReason::none) log_->message(end_text());
  if (profile_) profile_->finish();
  log_bubble();
  clock_.begin_save();
  checkpoints_->save_last();
  clock_.end_save();
  // A stopped run has little time left, so it does not evaluate.
  if (result_.stopped == StopReason::none && evaluated_step_ != counters().step) evaluate();
  write_weights(config_ini);
}

TrainingResult Trainer::run(const std::string& config_ini) {
  resume(config_ini);
  open_logs(config_ini);
  record_preflight();
  record_begin(config_ini);
  try {
    train();
    finish(config_ini);
  } catch (const DivergedError& error) {
    save_diverged(error);
  } catch (const FencedError&) {
    throw;  // the ledger belongs to the start that took over
  } catch (const std::exception& error) {
    record_error(error.what());
    throw;
  }
  record_end();
  return result_;
}

}  // namespace phalanx
