// Which checkpoints are in a folder, told from names, manifests and sizes alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/checkpoint/manifest.h"

namespace phalanx {

/// What PATH leads to: one checkpoint, a folder of them, or a run folder (its checkpoints/).
struct FoundCheckpoints {
  std::string save;                     // the folder they are in; empty if PATH is a checkpoint
  std::vector<std::string> folders;     // iter_0001000, ... complete or not, by iteration
  std::vector<std::string> incomplete;  // iter_0001000.writing.3 and the like
};

/// Throws UsageError if `path` is none of these.
FoundCheckpoints find_checkpoints(const std::string& path);
/// The checkpoint that `path` is, or the newest complete one it leads to. Throws UsageError if
/// there is none.
std::string one_checkpoint(const std::string& path);

struct CheckpointSummary {
  std::string damage;  // what is wrong at first sight; empty: complete
  std::optional<Manifest> manifest;
  int64_t bytes = 0;  // of all files in the folder
  bool has_certificate = false;
};

/// Looks at the manifest and the sizes of files; `verify_checkpoint` reads them.
CheckpointSummary summarise_checkpoint(const std::string& folder);

}  // namespace phalanx
