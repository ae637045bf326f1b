// A tiny run with checkpoints, for tests of how it goes on.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "core/train/run_training.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/train/tiny_run.h"

namespace phalanx::test {

inline constexpr int kRanks = 2;

inline RunConfig run_config(const std::string& run_dir) {
  RunConfig config = tiny_run();
  config.parallel.tensor_model_parallel_size = kRanks;
  config.training.train_iters = 6;
  config.training.run_dir = run_dir;
  config.checkpoint.save_interval = 2;
  return config;
}

/// What a run said, and how it ended.
struct Outcome {
  std::string log;
  std::string error;  // empty: it went to its end
};

/// Trains on two thread ranks; `config_ini` is what the checkpoints keep of the configuration.
template <class Failure = Error>
Outcome train(const RunConfig& config, const std::string& config_ini = "seed = 1234\n") {
  Outcome outcome;
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  try {
    run_thread_ranks(kRanks, [&](ThreadRank& rank) {
      const DeviceMesh mesh(config.parallel, kRanks);
      ProcessGroups groups = rank.process_groups(mesh);
      CpuBackend backend(1);
      run_training(config, config_ini, backend, groups, mesh);
    });
  } catch (const Failure& failure) {
    outcome.error = failure.what();
  }
  outcome.log = testing::internal::GetCapturedStderr() + testing::internal::GetCapturedStdout();
  return outcome;
}

}  // namespace phalanx::test
