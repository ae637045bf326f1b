// The files by which the ranks of a run agree who of them is the doctor of a hang.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace phalanx {

/// One per rank, for one thread. Only a rank in which nothing has gone on for too long asks, so
/// that healthy runs leave no trace here. All methods may wait for the file system.
///
/// Files, not messages: what hangs may be the network of the ranks. RUN/ranks/hang_ATTEMPT.1 is
/// made by whoever comes first (O_EXCL, which every shared file system decides on its server), and
/// read anew by the others at each look. If it does not change for so long that its maker must be
/// gone, the next one makes hang_ATTEMPT.2.
class HangIncident {
 public:
  enum class Role : uint8_t {
    doctor,    // this rank is to look at all records, and decides
    waits,     // another one does
    announced  // another one has found a hang: the run ends
  };

  /// `attempt` tells this start of the run from others.
  HangIncident(std::string folder, int64_t attempt, std::chrono::milliseconds takeover);

  Role look();
  /// Of the doctor: it is a hang; the text is kept in the file.
  void announce(const std::string& text);
  /// Something goes on in this rank after all. Does nothing unless it is the doctor.
  void withdraw();

 private:
  using Clock = std::chrono::steady_clock;
  std::string path_of(int64_t generation) const;
  void write(const std::string& text) const;

  std::string folder_;
  int64_t attempt_;
  std::chrono::milliseconds takeover_;
  int64_t generation_ = 1;
  bool doctor_ = false;
  int64_t num_looks_ = 0;
  std::string seen_;         // what the file last said
  Clock::time_point since_;  // since when it says so
};

}  // namespace phalanx
