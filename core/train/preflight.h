// Preflight: a few seconds of work for every part of the machines before the first step, so that a
// slow or broken one is known before it costs hours.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/train/preflight_report.h"
#include "core/train/rank_places.h"
#include "core/train/training_config.h"
#include "kernels/backend.h"

namespace phalanx {

/// auto: in a job of Slurm (`slurm_job`, its id, is there) of several ranks. Elsewhere and alone
/// there is nothing to compare with, and a few seconds count.
bool wants_preflight(PreflightChoice choice, int num_ranks, const char* slurm_job);

struct PreflightPlan {
  double peak_flops = 0;  // of this rank, measured while all ranks computed
  int64_t room = 0;       // bytes that may be allocated on the device for the time of the test
  std::string run_dir;
};

/// Measures memory copies in all ranks at once; then messages between the first ranks of nodes that
/// are 1, 2, 4, ... places apart, short ones and 4 MiB, in rounds of pairs; then writing, syncing
/// and reading back up to 16 MiB in the run folder on every node at once. Each part is stopped
/// after about a second, so that many nodes or slow ones take no longer. Collective over the world;
/// all ranks return the same. Throws Error on all ranks if a message or a file came back with other
/// bytes than were sent, or if a node cannot use the run folder, which rank 0 makes.
PreflightReport run_preflight(Backend& backend, ProcessGroup& world, const RankPlaces& places,
                              const PreflightPlan& plan);

/// Bytes that belong to `stream`: no two streams or places look alike.
void fill_pattern(std::vector<uint64_t>& words, uint64_t stream);
/// The first byte of `words` that is not of the pattern; -1: none.
int64_t first_wrong_byte(const std::vector<uint64_t>& words, uint64_t stream);

}  // namespace phalanx
