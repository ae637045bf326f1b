// Before a long run: whether its parallel layout trains the same model as one rank.
#pragma once

#include <string>

#include "core/config.h"
#include "core/train/layout_check.h"

namespace phalanx {

struct VerificationResult {
  bool same = false;
  std::string text;  // what was compared, or what differs first and which group is wrong; lines
};

/// Trains two steps of a shrunken copy of `config`'s model in its layout and on one fp32 rank, in
/// the same processes, and compares them. Reads no data, writes nothing. Collective over the ranks
/// of `groups_of`'s groups; the same result on each.
VerificationResult run_verification(const RunConfig& config, Backend& backend, int64_t world_size,
                                    const GroupsOfMesh& groups_of);

}  // namespace phalanx
