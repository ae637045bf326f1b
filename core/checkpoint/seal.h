// The last files of a checkpoint: what makes a folder of shards complete.
#pragma once

#include <cstdint>
#include <string>

#include "core/checkpoint/manifest.h"

namespace phalanx {

/// XXH3 over all bytes of a file, read in pieces.
uint64_t file_digest(const std::string& path);

/// The shards of `manifest` are in FOLDER, written and durable. Writes index.h5 (and its size and
/// checksum into `manifest`), manifest.json and, last, COMMITTED; all durable.
void seal_checkpoint(const std::string& folder, Manifest& manifest);

}  // namespace phalanx
