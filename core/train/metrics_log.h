// What a run says about its steps: Megatron's iteration line, a live line on terminals,
// metrics.jsonl, TensorBoard.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/train/communication_log.h"
#include "core/train/record_file.h"
#include "core/train/step_times.h"
#include "core/train/tensorboard_writer.h"
#include "core/train/train_state.h"
#include "core/train/train_step.h"
#include "core/train/validation_set.h"

namespace phalanx {

/// Numbers that do not change during a run.
struct RunFacts {
  int64_t train_iters = 0;
  int64_t global_batch_size = 0;
  int64_t log_interval = 1;
  int64_t num_ranks = 1;
  double flops_per_token = 0;  // model FLOPs, forward and backward, of one original token
  double peak_flops = 0;       // of one rank, per second; 0: unknown
  bool log_z_loss = false;
  bool log_router = false;  // the model has experts
};

/// Losses and times over the steps since the last line.
struct LogInterval {
  int64_t steps = 0;
  int64_t skipped = 0;
  int64_t nan = 0;  // of the skipped, those whose loss (not just gradient) is not finite
  double seconds = 0;
  int64_t tokens = 0;
  double loss_sum = 0;  // over the steps that were not skipped
  double z_loss_sum = 0;
  StepMetrics last;
};

/// " [2026-01-02 03:04:05.678901] iteration ..." as Megatron's training_log prints it, field by
/// field, then our own: tokens per second, model FLOP utilisation, time left. No line end.
std::string iteration_line(const RunFacts& facts, const TrainCounters& counters,
                           const LogInterval& interval, const std::string& timestamp);
/// " validation loss at iteration N | lm loss value: ... | lm loss PPL: ... | ". No line end.
std::string validation_line(int64_t iteration, double loss);
/// One JSON object. Numbers that are not finite become null, because JSON has none. The key
/// "communication" is absent where there are no groups of more than one rank. "seconds" is the time
/// of the rank that writes: "step" is "compute" + "data" + "wait", "save" comes before it.
std::string step_json(const RunFacts& facts, const TrainCounters& counters,
                      const StepMetrics& metrics, const StepTimes& times,
                      const std::vector<GroupTraffic>& communication = {});
/// "1:02:03".
std::string hours_minutes_seconds(double seconds);
/// Local time as "2026-01-02 03:04:05.678901".
std::string timestamp_now();

/// Writes all of them. Made on rank 0 only; one thread. What cannot be written (a full disk) is
/// told once and lost: records are not worth a run.
class MetricsLog {
 public:
  struct Files {
    std::string metrics;             // appended to
    std::string tensorboard_folder;  // one event file is added
  };
  MetricsLog(const RunFacts& facts, const Files& files, std::FILE* out = stdout);

  /// After every step, with the `communication` in it.
  void step(const TrainCounters& counters, const StepMetrics& metrics, const StepTimes& times,
            const std::vector<GroupTraffic>& communication = {});
  /// `seconds` that the evaluation took.
  void validation(const TrainCounters& counters, const ValidationMetrics& metrics, double seconds);
  /// Once, after the last step: parts of a step that the pipeline's ranks idle.
  void pipeline(const TrainCounters& counters, double predicted_bubble, double measured_bubble);
  /// A record of metrics.jsonl for anything else: {"event": ..., "time": now, fields ...}.
  void record(const std::string& event, const nlohmann::ordered_json& fields);
  /// A line for people that does not break the live one.
  void message(const std::string& text);

 private:
  void print_line(const std::string& line);
  void show_status(const TrainCounters& counters, const StepMetrics& metrics, double seconds);
  void write_record(const std::string& record);
  void write_scalars(int64_t step, std::span<const Scalar> scalars);
  void tell_loss(bool written, const std::string& file, bool& told);

  RunFacts facts_;
  Files files_;
  std::FILE* out_;
  bool terminal_;
  bool status_shown_ = false;
  bool records_lost_ = false;
  bool scalars_lost_ = false;
  RecordFile metrics_file_;
  TensorBoardWriter tensorboard_;
  LogInterval interval_;
};

}  // namespace phalanx
