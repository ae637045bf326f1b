// index.h5: every logical tensor of a checkpoint whole, as a virtual dataset over the shards.
#pragma once

#include <string>

#include "core/checkpoint/manifest.h"

namespace phalanx {

/// Writes `path`, durable: one virtual dataset per tensor and part ("layers.03.mlp.gate.weight",
/// "optimizer.exp_avg/layers.03..."), over the files of `manifest` beside it, by relative names, so
/// that the folder can be moved. Elements whose shard is missing read as NaN, because HDF5 says
/// nothing of a missing source. Attributes of "/": step, consumed_samples, tokenizer_hash, config.
void write_index(const std::string& path, const Manifest& manifest);

}  // namespace phalanx
