// Writing under another name and renaming, so that a reader finds stacks whole or not at all.
#include "core/train/hang_stacks.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "core/run_files.h"
#include "core/train/native_stacks.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMostSuspects = 4;
constexpr int kMostFrames = 12;
constexpr auto kPause = std::chrono::milliseconds(100);

std::string headline(const StacksQuestion& question, int64_t rank) {
  return fmt::format("native stacks of rank {}, start {}", rank, question.attempt);
}

/// The rank's stacks of this start; empty if they are not there yet.
std::string stacks_of(const StacksQuestion& question, int64_t rank) {
  std::ifstream file(stacks_path(question.run_dir, rank));
  std::string text{std::istreambuf_iterator<char>(file), {}};
  return text.starts_with(headline(question, rank)) ? text : "";
}

}  // namespace

void write_stacks(const StacksQuestion& question, const FlightOwner& owner) {
  const std::string path = stacks_path(question.run_dir, owner.rank);
  const std::string text = headline(question, owner.rank) +
                           fmt::format(", process {} on {}\n", getpid(), owner.node) +
                           stacks_text(native_stacks(std::chrono::milliseconds(1000)));
  std::ofstream(path + ".new") << text;
  std::rename((path + ".new").c_str(), path.c_str());
}

std::string first_frames(const std::string& file) {
  std::istringstream lines(file);
  std::string text;
  int frames = 0;
  bool inside = false;
  for (std::string line; std::getline(lines, line) && frames < kMostFrames;) {
    if (line.starts_with("thread ") && inside) break;
    inside = inside || line.starts_with("thread ");
    if (!inside || !line.starts_with("  ")) continue;
    text += "phalanx:   " + line + "\n";
    ++frames;
  }
  return text;
}

RankStacks gather_stacks(const StacksQuestion& question, std::span<const RankState> ranks,
                         std::span<const int64_t> suspects) {
  std::vector<int64_t> missing;
  for (size_t rank = 0; rank < ranks.size(); ++rank)
    if (ranks[rank].life == RankLife::answers) missing.push_back(static_cast<int64_t>(rank));
  const size_t num_asked = missing.size();
  const auto has_come = [&](int64_t rank) { return !stacks_of(question, rank).empty(); };
  for (const auto end = Clock::now() + question.patience; Clock::now() < end;) {
    std::erase_if(missing, has_come);
    if (missing.empty()) break;
    std::this_thread::sleep_for(kPause);
  }
  RankStacks stacks{.num_ranks = static_cast<int64_t>(num_asked - missing.size())};
  size_t told = 0;
  for (const int64_t rank : suspects) {
    const std::string frames = first_frames(stacks_of(question, rank));
    if (frames.empty() || told++ >= kMostSuspects) continue;
    stacks.text += fmt::format("phalanx: main thread of rank {}:\n{}", rank, frames);
  }
  return stacks;
}

}  // namespace phalanx
