// Short texts between ranks: what rank 0 read, what each wrote, what one of them found wrong.
#pragma once

#include <string>
#include <vector>

#include "parallel/process_group.h"

namespace phalanx {

/// Rank 0's `text`, on every rank. Collective, as all here.
std::string broadcast_text(ProcessGroup& group, const std::string& text);
/// Every rank's `text`, in rank order.
std::vector<std::string> gather_texts(ProcessGroup& group, const std::string& text);
/// Returns on every rank if no rank has a `problem`; else throws CheckpointDamage with that of the
/// lowest rank that has one, on every rank.
void agree_intact(ProcessGroup& group, const std::string& problem);
/// Elementwise sum modulo 2^64 over the ranks, in place.
void sum_digests(ProcessGroup& group, std::vector<uint64_t>& digests);

}  // namespace phalanx
