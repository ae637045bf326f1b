// Validation of a whole run: each part's own problems, then what only shows when parts meet.
#include "core/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "core/layout_validate.h"
#include "core/model/problems.h"
#include "core/train/step_profile.h"
#include "parallel/device_mesh.h"

namespace phalanx {
namespace {

/// Problem unless 0 <= value < 1.
void in_range(Problems& problems, std::string_view option, double value, double nearest) {
  if (!(value >= 0 && value < 1))
    report(problems, "{} {} is not at least 0 and below 1; the nearest is {}", option, value,
           nearest);
}

void validate_batches(Problems& problems, const RunConfig& config, int64_t world_size) {
  const int64_t micro = config.training.micro_batch_size;
  const int64_t global = config.training.global_batch_size;
  at_least(problems, "micro-batch-size", micro, 1);
  at_least(problems, "global-batch-size", global, 0);
  if (micro < 1 || global < 1) return;
  const int64_t data_parallel = data_parallel_size(config.parallel, world_size);
  const int64_t step = micro * data_parallel;
  if (global % step == 0) return;
  const int64_t below = global / step * step;
  report(problems,
         "global-batch-size {} is not divisible by micro-batch-size {} x {} data-parallel ranks; "
         "try {}{}",
         global, micro, data_parallel, below > 0 ? fmt::format("{} or ", below) : "", below + step);
}

void validate_length(Problems& problems, const TrainingConfig& training) {
  const int64_t iters = training.train_iters;
  const int64_t samples = training.train_samples;
  if (iters < 0) report(problems, "train-iters {} is negative; the nearest is 1", iters);
  if (samples < 0) report(problems, "train-samples {} is negative; the nearest is 1", samples);
  if (iters == 0 && samples == 0)
    report(problems,
           "train-iters 0 and train-samples 0: say how long to train, e.g. train-iters "
           "1000");
  if (iters > 0 && samples > 0)
    report(problems, "train-iters {} and train-samples {} contradict each other; give one", iters,
           samples);
}

void validate_profile(Problems& problems, const TrainingConfig& training) {
  if (training.profile.empty()) return;
  try {
    const StepRange steps = parse_step_range(training.profile);
    if (training.train_iters > 0 && steps.first > training.train_iters)
      report(problems, "profile {} begins after the last step; the nearest is {}", training.profile,
             training.train_iters);
  } catch (const UsageError& error) {
    report(problems, "{}", error.what());
  }
}

void validate_training(Problems& problems, const TrainingConfig& training) {
  validate_length(problems, training);
  validate_profile(problems, training);
  if (training.run_dir.empty())
    report(problems,
           "run-dir is empty: name a folder for what the run writes, e.g. run-dir "
           "runs/first");
  at_least(problems, "threads", training.threads, 0);
  at_least(problems, "eval-interval", training.eval_interval, 0);
  at_least(problems, "eval-iters", training.eval_iters, 1);
  at_least(problems, "log-interval", training.log_interval, 1);
  at_least(problems, "max-skipped-in-row", training.max_skipped_in_row, 1);
  at_least(problems, "hang-timeout", training.hang_timeout, 0);
  at_least(problems, "replica-check-interval", training.replica_check_interval, 0);
  at_least(problems, "peak-tflops", training.peak_tflops, 0);
}

void validate_checkpoint(Problems& problems, const RunConfig& config) {
  const CheckpointConfig& c = config.checkpoint;
  at_least(problems, "save-interval", c.save_interval, 0);
  at_least(problems, "save-keep-last", c.save_keep_last, 0);
  at_least(problems, "save-retain-interval", c.save_retain_interval, 0);
  at_least(problems, "save-report-seconds", c.save_report_seconds, 0);
  at_least(problems, "ckpt-step", c.ckpt_step, -1);
  at_least(problems, "exit-duration-in-mins", c.exit_duration_in_mins, 0);
  if (c.ckpt_step >= 0 && c.load_checkpoint.empty())
    report(problems,
           "ckpt-step {} without load-checkpoint: to go back to an earlier checkpoint give a new "
           "run-dir, and load-checkpoint with the folder it is in",
           c.ckpt_step);
  const bool none = c.load_checkpoint.empty() && c.save_interval == 0;
  if (c.resume == ResumeMode::required && none)
    report(problems,
           "resume required without checkpoints (save-interval 0): name load-checkpoint, or try "
           "save-interval 1000");
}

void validate_optimizer(Problems& problems, const RunConfig& config) {
  const OptimizerConfig& o = config.optimizer;
  at_least(problems, "lr", o.lr, 0);
  at_least(problems, "min-lr", o.min_lr, 0);
  at_least(problems, "lr-warmup-init", o.lr_warmup_init, 0);
  at_least(problems, "weight-decay", o.weight_decay, 0);
  at_least(problems, "clip-grad", o.clip_grad, 0);
  at_least(problems, "lr-decay-iters", o.lr_decay_iters, 0);
  at_least(problems, "lr-warmup-iters", o.lr_warmup_iters, 0);
  at_least(problems, "lr-wsd-decay-iters", o.lr_wsd_decay_iters, 0);
  if (o.min_lr > o.lr)
    report(problems, "min-lr {} is above lr {}; the nearest is {}", o.min_lr, o.lr, o.lr);
  if (!(o.adam_eps > 0)) report(problems, "adam-eps {} must be positive; try 1e-8", o.adam_eps);
  in_range(problems, "adam-beta1", o.adam_beta1, 0.9);
  in_range(problems, "adam-beta2", o.adam_beta2, 0.95);
  const int64_t decay_iters = o.lr_decay_iters > 0 ? o.lr_decay_iters : config.training.train_iters;
  if (decay_iters > 0 && o.lr_warmup_iters > decay_iters)
    report(problems,
           "lr-warmup-iters {} is more than the {} steps of the schedule (lr-decay-iters, or "
           "train-iters); the nearest is {}",
           o.lr_warmup_iters, decay_iters, decay_iters);
}

void validate_prefixes(Problems& problems, std::string_view option,
                       const std::vector<std::string>& words) {
  if (words.empty()) return;
  try {
    for (const auto& prefix : parse_blend(words).prefixes)
      for (const char* ending : {".idx", ".bin"})
        if (!std::filesystem::exists(prefix + ending))
          report(problems, "{} {}: there is no file {}{}; `phalanx prepare` makes it", option,
                 prefix, prefix, ending);
  } catch (const UsageError& error) {
    report(problems, "{}: {}", option, error.what());
  }
}

void validate_data(Problems& problems, const DataConfig& data) {
  if (data.mock_data) return;
  if (data.data_path.empty() && data.train_data_path.empty())
    report(problems,
           "data-path is empty: give the prefix that `phalanx prepare` wrote, or "
           "mock-data");
  const std::pair<std::string_view, const std::vector<std::string>&> splits[] = {
      {"train-data-path", data.train_data_path},
      {"valid-data-path", data.valid_data_path},
      {"test-data-path", data.test_data_path}};
  for (const auto& [option, words] : splits)
    if (!data.data_path.empty() && !words.empty())
      report(problems, "data-path and {} contradict each other; give one", option);
  validate_prefixes(problems, "data-path", data.data_path);
  for (const auto& [option, words] : splits) validate_prefixes(problems, option, words);
}

}  // namespace

void apply_preset(RunConfig& config, const ModelPreset& preset) {
  config.model = preset.model;
  config.optimizer = preset.optimizer;
  config.data.seq_length = preset.seq_length;
  config.training.global_batch_size = preset.global_batch_size;
}

std::vector<std::string> validate(const RunConfig& config, int64_t world_size) {
  Problems problems = validate(config.model, config.data.seq_length);
  append(problems, validate(config.parallel, world_size));
  validate_batches(problems, config, world_size);
  validate_training(problems, config.training);
  validate_checkpoint(problems, config);
  validate_optimizer(problems, config);
  append(problems, validate_layout(config, world_size));
  validate_data(problems, config.data);
  return problems;
}

}  // namespace phalanx
