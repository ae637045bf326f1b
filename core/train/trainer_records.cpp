// What a trainer tells: to people, to metrics.jsonl and to the ledger.
#include <fmt/format.h>
#include <sys/resource.h>

#include <array>
#include <filesystem>
#include <fstream>

#include "core/model/model_cost.h"
#include "core/run_files.h"
#include "core/train/config_changes.h"
#include "core/train/trainer.h"
#include "kernels/base/flight_recorder.h"

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

}  // namespace

std::string layout_text(const std::string& config_ini, const ProcessGroups& groups) {
  const std::string options = changed_from_default(config_ini, "Parallelism");
  return fmt::format("dp {}{}{}", groups.dp->size(), options.empty() ? "" : ", ", options);
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
  const FlightRange opening(flight_entry(FlightKind::phase, "open the logs"));
  const TrainingConfig& training = setup_.config.training;
  std::filesystem::create_directories(training.run_dir);
  // Weights of an earlier run must not be taken for this one's before this one has written its own.
  set_aside(weights_path(training.run_dir));
  write_text(training.run_dir + "/config.ini", config_ini);
  const std::string metrics = metrics_path(training.run_dir);
  const bool resumed = !resumed_from_.empty();
  if (!resumed) set_aside(metrics);
  const std::string tensorboard = training.tensorboard_dir.empty()
                                      ? training.run_dir + "/tensorboard"
                                      : training.tensorboard_dir;
  if (!resumed) set_aside(tensorboard);
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
  ledger_ = std::make_unique<Ledger>(training.run_dir);
  checkpoints_->set_log({.message = [this](const std::string& text) { log_->message(text); },
                         .outcome = [this](const SaveOutcome& save) { record_save(save); }});
}

void Trainer::log_bubble() {
  if (groups_.pp->size() == 1) return;
  const double measured = bubble_.fraction();
  if (log_ != nullptr)
    log_->pipeline(counters(), predicted_bubble_fraction(pipeline_question()), measured);
}

/// Why the run ended; for the log while there are steps left.
std::string Trainer::end_text() const {
  const int64_t step = counters().step;
  const int64_t steps = setup_.config.training.train_iters;
  const auto stopped = [&](const std::string& why) {
    const bool saves = step > 0 && setup_.config.checkpoint.save_interval > 0;
    return fmt::format("stopped {} after step {} of {}; {}", why, step, steps,
                       saves       ? "saving"
                       : step == 0 ? "there is nothing to save"
                                   : "--save-interval 0: no checkpoint is saved");
  };
  switch (result_.stopped) {
    case StopReason::none:
      return fmt::format("all {} steps are done", steps);
    case StopReason::signal:
      return stopped("by a signal");
    case StopReason::duration:
      return stopped("because --exit-duration-in-mins is nearly over,");
    case StopReason::stop_file:
      return stopped(
          fmt::format("because {} is there,", stop_file_path(setup_.config.training.run_dir)));
    case StopReason::diverged:
      return diverged_;
  }
  return {};
}

void Trainer::record_preflight() {
  if (log_ == nullptr || !preflight_) return;
  const std::vector<std::string> outliers = preflight_outliers(*preflight_);
  log_->message(preflight_table(*preflight_, outliers));
  ledger_->write("preflight", preflight_json(*preflight_, outliers));
}

void Trainer::record_begin(const std::string& config_ini) {
  if (log_ == nullptr) return;
  const TrainingConfig& training = setup_.config.training;
  ledger_->write("training_begin", {{"step", counters().step},
                                    {"train_iters", training.train_iters},
                                    {"ranks", groups_.world->size()},
                                    {"startup_seconds", process_seconds()},
                                    {"checkpoint", resumed_from_},
                                    {"layout", layout_text(config_ini, groups_)}});
  log_->record("run",
               {{"ranks", groups_.world->size()},
                {"nodes", places_.num_nodes()},
                {"step", counters().step},
                {"memory_bytes_plan", most_memory_},
                {"peak_flops", peak_flops_},
                {"flops_per_token", flops_per_token(setup_.config)},
                {"tokens_per_step", training.global_batch_size * setup_.config.data.seq_length}});
}

void Trainer::record_save(const SaveOutcome& save) {
  log_->record("checkpoint", {{"iteration", save.iteration},
                              {"durable", save.problem.empty()},
                              {"problem", save.problem},
                              {"bytes", save.bytes},
                              {"stall_seconds", save.stall_seconds},
                              {"durable_seconds", save.durable_seconds}});
  ledger_->write("checkpoint", {{"step", save.iteration},
                                {"durable", save.problem.empty()},
                                {"stall_seconds", save.stall_seconds},
                                {"durable_seconds", save.durable_seconds},
                                {"problem", save.problem}});
}

void Trainer::report_rank_times() {
  const RankTimesReport report = rank_times_.gather();
  if (log_ == nullptr) return;
  log_->record("ranks", rank_times_json(report, counters().step, places_));
  const auto slow =
      slow_nodes_.look(slowest_node(report.times, report.steps, places_), unix_seconds());
  if (!slow) return;
  log_->message(slow_node_text(*slow, places_));
  ledger_->write("slow_node", {{"node", places_.nodes[static_cast<size_t>(slow->node)]},
                               {"percent", slow->percent},
                               {"step", counters().step}});
}

/// Collective.
void Trainer::record_end() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  const int64_t host = groups_.world->all_reduce(int64_t{usage.ru_maxrss} * 1024, ReduceOp::max);
  const int64_t device = backend_.device() == Device::cpu
                             ? host
                             : groups_.world->all_reduce(memory_.block(), ReduceOp::max);
  if (log_ == nullptr) return;
  log_->record("end", {{"step", counters().step},
                       {"memory_peak_bytes", device},
                       {"host_memory_peak_bytes", host},
                       {"save_seconds", clock_.save_seconds()}});
  constexpr std::array kReasons{"done", "duration", "signal", "stop_file", "diverged"};
  ledger_->write("training_end", {{"step", counters().step},
                                  {"reason", kReasons[static_cast<size_t>(result_.stopped)]},
                                  {"updates", updates_},
                                  {"text", end_text()}});
}

/// Of this rank, if it is the first: others cannot write, and it hears of them by being ended.
void Trainer::record_error(const std::string& text) {
  if (ledger_ == nullptr) return;
  ledger_->write(
      "training_end",
      {{"step", counters().step}, {"reason", "error"}, {"updates", updates_}, {"text", text}});
}

}  // namespace phalanx
