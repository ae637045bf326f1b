// How often and how long the threads of a hang doctor wait.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace phalanx {

struct HangTimes {
  using Milliseconds = std::chrono::milliseconds;
  Milliseconds timeout;    // without progress; 0: nobody is ended
  Milliseconds heartbeat;  // between two writes of a record, and two looks at an incident
  Milliseconds silence;    // without a heartbeat, by the reader's clock: look again
  Milliseconds proof;      // no heartbeat in this time of looking: the process does not answer
  Milliseconds patience;   // with a file system
  Milliseconds stacks;     // for the stacks of all ranks
  Milliseconds end;        // for the job to end, before a process ends itself
};

/// `world` ranks write no more than 200 times a second together, because they share a file system.
constexpr HangTimes hang_times(std::chrono::milliseconds timeout, int64_t world) {
  using Milliseconds = std::chrono::milliseconds;
  constexpr int64_t kMostWritesPerSecond = 200;
  const Milliseconds usual = timeout.count() > 0
                                 ? std::clamp(timeout / 4, Milliseconds(250), Milliseconds(2000))
                                 : Milliseconds(2000);
  const Milliseconds heartbeat = std::max(usual, Milliseconds(1000 * world / kMostWritesPerSecond));
  return {.timeout = timeout,
          .heartbeat = heartbeat,
          .silence = 3 * heartbeat,
          .proof = std::max(2 * heartbeat + Milliseconds(500),
                            std::min(timeout / 2, Milliseconds(10000))),
          .patience = std::clamp(timeout, Milliseconds(5000), Milliseconds(60000)),
          .stacks = 2 * heartbeat + Milliseconds(3000),
          .end = 4 * heartbeat + Milliseconds(20000)};
}

}  // namespace phalanx
