// Trainer: owns what a training run consists of and goes through its steps.
#pragma once

#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "core/train/ledger.h"
#include "core/train/memory_check.h"
#include "core/train/metrics_log.h"
#include "core/train/pipeline_report.h"
#include "core/train/preflight_report.h"
#include "core/train/rank_times.h"
#include "core/train/run_checkpoints.h"
#include "core/train/run_setup.h"
#include "core/train/run_training.h"
#include "core/train/step_profile.h"
#include "core/train/train_step.h"
#include "core/train/validation_set.h"
#include "parallel/replica_check.h"

namespace phalanx {

/// The data-parallel size and the options of the layout: for people, and for telling whether two
/// runs must agree bit for bit.
std::string layout_text(const std::string& config_ini, const ProcessGroups& groups);

/// Owns parameters, stage, optimizer, loaders and logs of one rank. All methods are collective and
/// for one thread. Members are in the order they are built: nothing takes memory before the plan
/// was compared with the machine.
class Trainer {
 public:
  Trainer(const RunConfig& config, Backend& backend, ProcessGroups& groups);

  /// What will run, for people.
  std::string describe(const DeviceMesh& mesh) const;
  /// Goes on from a checkpoint if there is one, trains to the end or until a stop is requested,
  /// saves and writes the weights.
  TrainingResult run(const std::string& config_ini);

  /// One step with its log entries and checkpoints. Throws DivergedError on all ranks alike.
  void step();
  /// Whether any rank has a reason to stop here.
  StopReason agreed_stop();
  StepMetrics last_metrics() const { return last_metrics_; }
  const TrainCounters& counters() const { return state_->counters; }
  const ParameterStore& parameters() const { return store_; }

 private:
  int64_t num_micro_batches() const;
  MemoryQuestion memory_question() const;
  PipelineQuestion pipeline_question() const;
  BatchPlan train_plan(int64_t order_samples) const;
  void open_data();
  void allocate();
  void resume(const std::string& config_ini);
  void reorder_data(const ResumePoint& point);
  void train();
  void finish(const std::string& config_ini);
  void save_diverged(const DivergedError& error);
  bool stop_file_is_there();
  StopReason own_stop_reason();
  void evaluate();
  void write_weights(const std::string& config_ini);
  // What it tells (trainer_records.cpp).
  void open_logs(const std::string& config_ini);
  void log_bubble();
  std::string end_text() const;
  void record_preflight();
  void record_begin(const std::string& config_ini);
  void record_save(const SaveOutcome& save);
  void report_rank_times();
  void record_end();
  void record_error(const std::string& text);
  bool is_first_rank() const { return groups_.world->rank() == 0; }

  RunSetup setup_;
  Backend& backend_;
  ProcessGroups& groups_;
  ParameterStore store_;
  PhdStage stage_;
  std::vector<PipelineAction> schedule_;
  MemoryNeeds memory_;
  int64_t most_memory_ = 0;  // bytes, of any rank
  std::unique_ptr<GradientBuffer> gradients_;
  std::unique_ptr<DistributedOptimizer> optimizer_;
  std::unique_ptr<BatchLoader> loader_;
  std::unique_ptr<ValidationSet> validation_set_;  // absent without validation data
  std::optional<TrainState> state_;
  std::unique_ptr<ReplicaCheck> replica_check_;  // absent without an interval
  std::unique_ptr<StepProfile> profile_;
  std::unique_ptr<RunCheckpoints> checkpoints_;
  std::string resumed_from_;   // folder; empty: a fresh start
  int64_t order_samples_ = 0;  // that the data order is made for
  double peak_flops_ = 0;
  std::optional<PreflightReport> preflight_;       // of the test before, where there was one
  std::unique_ptr<MetricsLog> log_;                // rank 0 only
  std::unique_ptr<Ledger> ledger_;                 // with log_
  std::optional<CommunicationLog> communication_;  // with log_
  BubbleMeter bubble_;
  StepClock clock_;
  RankTimes rank_times_;
  RankPlaces places_;
  SlowNodeWatch slow_nodes_;
  bool times_due_ = false;
  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point stop_file_looked_;
  double slowest_step_ = 0;  // seconds
  int64_t updates_ = 0;      // steps of this start that were not skipped
  int64_t evaluated_step_ = -1;
  std::string diverged_;  // what was wrong
  StepMetrics last_metrics_;
  TrainingResult result_{std::numeric_limits<double>::quiet_NaN(),
                         std::numeric_limits<double>::quiet_NaN(), 0, StopReason::none};
};

}  // namespace phalanx
