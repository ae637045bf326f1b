// A run small enough for tests: two layers of PHD-CSWA on mock data.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "core/config.h"

namespace phalanx {

inline RunConfig tiny_run() {
  RunConfig config;
  config.model.num_layers = 2;
  config.model.hidden_size = 32;
  config.model.ffn_hidden_size = 48;
  config.model.num_attention_heads = 2;
  config.model.phd_copies = 2;
  config.model.phd_window = 4;
  config.model.phd_chunk = 8;
  config.model.z_loss_coeff = 1e-4;
  config.data.mock_data = true;
  config.data.seq_length = 16;
  config.training.train_iters = 10;
  config.training.global_batch_size = 8;
  config.training.eval_iters = 2;
  config.training.threads = 1;
  config.training.peak_tflops = 1;  // not measured, because that takes time
  config.checkpoint.save_interval = 0;
  config.optimizer.lr = 1e-2;
  config.optimizer.min_lr = 1e-3;
  config.optimizer.lr_warmup_iters = 2;
  return config;
}

/// An empty folder of this process, removed when it ends: tests run side by side.
inline std::string fresh_folder(const std::string& name) {
  struct Root {
    std::string path = testing::TempDir() + "/phalanx_train_" + std::to_string(getpid());
    ~Root() { std::filesystem::remove_all(path); }
  };
  static const Root root;
  const std::string folder = root.path + "/" + name;
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

}  // namespace phalanx
