// Trainer: owns what a training run consists of and goes through its steps.
#pragma once

#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "core/train/memory_check.h"
#include "core/train/metrics_log.h"
#include "core/train/pipeline_report.h"
#include "core/train/run_checkpoints.h"
#include "core/train/run_setup.h"
#include "core/train/run_training.h"
#include "core/train/step_profile.h"
#include "core/train/train_step.h"
#include "core/train/validation_set.h"
#include "parallel/replica_check.h"

namespace phalanx {

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

  /// One step with its log entries and checkpoints.
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
  void open_logs(const std::string& config_ini);
  void say_why_stopped() const;
  void evaluate();
  void log_bubble();
  void write_weights(const std::string& config_ini);
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
  bool resumed_ = false;
  int64_t order_samples_ = 0;  // that the data order is made for
  double peak_flops_ = 0;
  std::unique_ptr<MetricsLog> log_;                // rank 0 only
  std::optional<CommunicationLog> communication_;  // with log_
  BubbleMeter bubble_;
  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  double slowest_step_ = 0;  // seconds
  StepMetrics last_metrics_;
  TrainingResult result_{std::numeric_limits<double>::quiet_NaN(),
                         std::numeric_limits<double>::quiet_NaN(), 0, StopReason::none};
};

}  // namespace phalanx
