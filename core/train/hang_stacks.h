// The files of native stacks in RUN/ranks: written by every rank of a hung run, read by its doctor.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/train/hang_waits.h"

namespace phalanx {

struct StacksQuestion {
  std::string run_dir;
  int64_t attempt = 0;  // stacks of other starts are not meant
  std::chrono::milliseconds patience{0};
};

/// Native stacks of all threads of this process into the rank's file.
void write_stacks(const StacksQuestion& question, const FlightOwner& owner);

struct RankStacks {
  int64_t num_ranks = 0;  // that have written theirs
  std::string text;       // of the suspects' main threads, for people
};

/// Waits until all ranks that answer have written their stacks, but no longer than
/// `question.patience`.
RankStacks gather_stacks(const StacksQuestion& question, std::span<const RankState> ranks,
                         std::span<const int64_t> suspects);

/// The innermost frames of the first thread in the text of such a file, each on its line.
std::string first_frames(const std::string& file);

}  // namespace phalanx
