// CheckpointConfig: where and how often a run is saved, what is kept, and from where it goes on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/enum_names.h"
#include "kernels/base/fields.h"

namespace phalanx {

/// What a start does about checkpoints that are there already.
enum class ResumeMode : uint8_t { automatic, required, never };
template <>
struct EnumNames<ResumeMode> {
  static constexpr std::pair<ResumeMode, std::string_view> table[] = {
      {ResumeMode::automatic, "auto"},
      {ResumeMode::required, "required"},
      {ResumeMode::never, "never"}};
};

struct CheckpointConfig {
  std::string save;              // empty: RUN-DIR/checkpoints
  int64_t save_interval = 1000;  // steps; 0: no checkpoints at all
  int64_t save_keep_last = 3;    // 0: all
  int64_t save_retain_interval = 0;
  bool async_save = true;
  int64_t save_report_seconds = 60;  // a file that takes longer is named; 0: never
  ResumeMode resume = ResumeMode::automatic;
  std::string load_checkpoint;  // run folder, SAVE folder or iter_ folder to start from
  int64_t ckpt_step = -1;       // this iteration and no other
  std::vector<std::string> allow_missing_tensors;
  std::vector<std::string> allow_unexpected_tensors;
  std::vector<std::string> allow_changed_options;
  std::vector<std::string> exit_signals{"SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"};
  double exit_duration_in_mins = 0;
};

template <class Config, class Visitor>
requires ConfigOf<Config, CheckpointConfig>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Checkpoints");
  visit("save", config.save, "folder of checkpoints; empty: RUN-DIR/checkpoints");
  visit("save-interval", config.save_interval,
        "steps between checkpoints (one more at the end of the run); 0: none at all");
  visit("save-keep-last", config.save_keep_last, "newest checkpoints to keep; 0: all");
  visit("save-retain-interval", config.save_retain_interval,
        "keep every checkpoint whose iteration is divisible by this; 0: no more than the newest");
  visit("async-save", config.async_save,
        "write in the background while training goes on, from a copy in host memory");
  visit("save-report-seconds", config.save_report_seconds,
        "name a checkpoint file that takes longer than this to write or read; 0: never");
  visit("resume", config.resume,
        "what to do with checkpoints in the save folder: auto goes on from the newest good one if "
        "there is any, required insists on one, never refuses to start if there is one");
  visit("load-checkpoint", config.load_checkpoint,
        "start from this checkpoint (run folder, folder of checkpoints, or one iter_ folder) while "
        "the save folder has none of its own");
  visit("ckpt-step", config.ckpt_step,
        "of load-checkpoint, this iteration and no other; -1: the newest good one");
  visit("allow-missing-tensors", config.allow_missing_tensors,
        "tensors that the checkpoint may lack (they keep their starting values); NAME* for many");
  visit("allow-unexpected-tensors", config.allow_unexpected_tensors,
        "tensors of the checkpoint that the model may lack (they are left out); NAME* for many");
  visit("allow-changed-options", config.allow_changed_options,
        "options of model, data order and seed that may differ from the checkpoint's");
  visit("exit-signals", config.exit_signals,
        "signals that end the run after the step, with a checkpoint");
  visit("exit-duration-in-mins", config.exit_duration_in_mins,
        "end the run, with a checkpoint, so that it is over after this many minutes; 0: no limit");
}

}  // namespace phalanx
