// A checkpoint written anew: with another number of shards, or as one plain file of weights.
#pragma once

#include <cstdint>
#include <string>

#include "core/checkpoint/checkpoint_reader.h"

namespace phalanx {

/// Makes the folder `target`, which must not be there, a checkpoint of the same state with
/// `num_shards` shards of about equal bytes, cut between rows, every tensor in as few blocks as
/// possible. Reads in pieces and checks what it reads; throws CheckpointDamage, leaving nothing
/// behind. A certificate (next_step.json) goes along, because the next step is the same.
void reshard_checkpoint(const std::string& source, const std::string& target, int64_t num_shards,
                        const ByteProgress& progress = {});

/// Writes the weights, without the optimizer's moments, into `target`, which must not be there: the
/// file that core/train/weights_file.h writes at the end of a run, byte for byte. Checks what it
/// reads; throws CheckpointDamage, leaving nothing behind.
void export_weights(const std::string& source, const std::string& target,
                    const ByteProgress& progress = {});

}  // namespace phalanx
