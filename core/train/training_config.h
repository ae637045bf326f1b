// TrainingConfig: the run itself - steps, batches, precision, evaluation, logs, the run folder.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/base/enum_names.h"
#include "kernels/base/fields.h"

namespace phalanx {

enum class ComputePrecision : uint8_t { fp32, bf16, fp64 };
template <>
struct EnumNames<ComputePrecision> {
  static constexpr std::pair<ComputePrecision, std::string_view> table[] = {
      {ComputePrecision::fp32, "fp32"},
      {ComputePrecision::bf16, "bf16"},
      {ComputePrecision::fp64, "fp64"}};
};

enum class DeviceChoice : uint8_t { automatic, cpu, cuda };
template <>
struct EnumNames<DeviceChoice> {
  static constexpr std::pair<DeviceChoice, std::string_view> table[] = {
      {DeviceChoice::automatic, "auto"}, {DeviceChoice::cpu, "cpu"}, {DeviceChoice::cuda, "cuda"}};
};

/// Whether the machines are tested before the first step.
enum class PreflightChoice : uint8_t { automatic, on, off };
template <>
struct EnumNames<PreflightChoice> {
  static constexpr std::pair<PreflightChoice, std::string_view> table[] = {
      {PreflightChoice::automatic, "auto"},
      {PreflightChoice::on, "on"},
      {PreflightChoice::off, "off"}};
};

struct TrainingConfig {
  std::string run_dir;  // everything a run writes
  int64_t train_iters = 0;
  int64_t train_samples = 0;  // alternative to train_iters
  int64_t micro_batch_size = 1;
  int64_t global_batch_size = 0;  // 0: micro-batch-size times data-parallel ranks
  int64_t seed = 1234;
  ComputePrecision precision = ComputePrecision::fp32;
  DeviceChoice device = DeviceChoice::automatic;
  bool cuda_graph = false;
  int64_t threads = 0;        // per rank; 0: OpenMP's default
  int64_t eval_interval = 0;  // 0: no evaluation
  int64_t eval_iters = 10;
  int64_t log_interval = 1;
  std::string tensorboard_dir;         // empty: RUN/tensorboard
  std::string profile;                 // steps to trace, "5" or "5-7"; empty: none
  double peak_tflops = 0.0;            // dense peak of one rank for MFU; 0: measured at start
  int64_t max_skipped_in_row = 10;     // NaN or infinite steps in a row before the run stops
  int64_t replica_check_interval = 0;  // steps; 0: never
  PreflightChoice preflight = PreflightChoice::automatic;
  int64_t hang_timeout = 600;  // seconds without progress until a run is ended; 0: never
};

template <class Config, class Visitor>
requires ConfigOf<Config, TrainingConfig>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Training");
  visit("run-dir", config.run_dir, "folder for everything the run writes");
  visit("train-iters", config.train_iters, "steps");
  visit("train-samples", config.train_samples, "samples, instead of train-iters");
  visit("micro-batch-size", config.micro_batch_size, "sequences per rank and micro-batch");
  visit("global-batch-size", config.global_batch_size,
        "sequences per step; 0: micro-batch-size x data-parallel ranks");
  visit("seed", config.seed, "seed of weights and data order");
  visit("precision", config.precision, "compute precision; masters and moments stay fp32");
  visit("device", config.device, "where to compute; auto: on GPUs if every rank has one");
  visit("cuda-graph", config.cuda_graph,
        "record the work of a micro-batch once and replay it (device cuda, data parallelism only)");
  visit("threads", config.threads, "CPU threads per rank; 0: OpenMP's default");
  visit("max-skipped-in-row", config.max_skipped_in_row,
        "stop after this many NaN or infinite steps in a row");
  visit("replica-check-interval", config.replica_check_interval,
        "steps between comparisons of replicated parameters; 0: never");
  visit("preflight", config.preflight,
        "test processors, memory, links and disk of every node for a few seconds before the first "
        "step and name what is slow; auto: under Slurm");
  visit("hang-timeout", config.hang_timeout,
        "seconds without any progress after which the run says which rank it waits for, writes all "
        "ranks' stacks to RUN-DIR/ranks and ends with exit code 74; 0: never");
  visit.group("Evaluation and logs");
  visit("eval-interval", config.eval_interval,
        "steps between evaluations; 0: no evaluation at all");
  visit("eval-iters", config.eval_iters, "global batches per evaluation");
  visit("log-interval", config.log_interval, "steps between log lines");
  visit("tensorboard-dir", config.tensorboard_dir, "event files; empty: RUN-DIR/tensorboard");
  visit("profile", config.profile,
        "steps to trace, e.g. 5 or 5-7: Chrome traces (for Perfetto) and a table of ops in "
        "RUN-DIR/profile");
  visit("peak-tflops", config.peak_tflops,
        "peak TFLOP/s of one rank for utilisation; 0: measured at start");
}

}  // namespace phalanx
