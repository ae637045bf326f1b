// Verification of a whole checkpoint against its checksums.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "core/checkpoint/manifest.h"

namespace phalanx {

struct VerifyOptions {
  int threads = 1;                              // 0: one per core
  const std::set<std::string>* only = nullptr;  // tensors to read; null: all
  // Bytes done and in all; from one thread at a time.
  std::function<void(int64_t done, int64_t total)> progress = {};
};

struct VerifyReport {
  std::vector<std::string> damages;  // one line each: file, tensor, expected and found
  std::vector<std::string> notes;    // files that do not belong to the checkpoint
  int64_t bytes = 0;                 // read

  bool intact() const { return damages.empty(); }
};

/// Throws CheckpointDamage unless FOLDER/index.h5 has the manifest's size and checksum.
void verify_index(const std::string& folder, const Manifest& manifest);

/// Everything that is wrong with the checkpoint in `folder`: COMMITTED, manifest, index, sizes and
/// frames of shards, every block of every part; next_step.json if there is one. Never throws
/// because of damage.
VerifyReport verify_checkpoint(const std::string& folder, const VerifyOptions& options);

}  // namespace phalanx
