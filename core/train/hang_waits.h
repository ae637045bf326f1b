// Who waits for whom, from the flight records of all ranks: the graph that a diagnosis walks.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/flight_recorder.h"
#include "parallel/device_mesh.h"

namespace phalanx {

/// What is known of one rank's process.
enum class RankLife : uint8_t {
  answers,  // its heart beats
  silent,   // it does not
  ended,    // in order, by itself
  unread    // its record could not be read
};

struct RankState {
  RankLife life = RankLife::unread;
  FlightRecord record = {};   // empty if unread
  double silent_seconds = 0;  // since its last heartbeat
  std::string process = {};   // what the kernel of this node says of it; empty: not known
};

/// One collective, or one expected message, in which at least one rank waits.
struct WaitPoint {
  std::string group;
  std::string operation;  // of the first waiter
  bool message = false;   // of an exchange: from one rank to one
  int64_t sequence = 0;
  std::vector<int64_t> members = {};  // ranks of the group, ascending
  std::vector<int64_t> waiters = {};
  std::vector<int64_t> missing = {};  // who have not entered it, or have not sent
  double seconds = 0;                 // of the longest wait
};

struct WaitGraph {
  std::vector<WaitPoint> points;       // in the order of their first waiter
  std::vector<int64_t> point_of_rank;  // where a rank waits; -1: it does not
};

/// Text of a field of an entry.
template <size_t size>
std::string flight_text(const std::array<char, size>& field) {
  return {field.data(), std::find(field.begin(), field.end(), '\0')};
}

/// Collectives entered in `group`.
int64_t collectives_entered(const FlightRecord& record, const std::string& group);

/// The ranks of `mesh`'s groups by name, each worked out once.
class GroupMembers {
 public:
  explicit GroupMembers(const DeviceMesh& mesh);
  /// Of the group called `name` that `rank` is in, ascending; empty if there is no such group.
  const std::vector<int64_t>& of(const std::string& name, int64_t rank);

 private:
  struct Group {
    std::string name;
    std::vector<std::vector<int64_t>> instances;
    std::vector<int32_t> instance_of_rank;  // -1: not worked out yet
  };
  void work_out(int64_t rank);

  const DeviceMesh& mesh_;
  std::vector<Group> groups_;
  std::vector<char> worked_out_;  // by rank
};

/// `ranks` by number, one for every rank of the mesh. Silent ranks wait for nobody: they cannot
/// have been woken. Linear in ranks and the sizes of the groups that are waited in.
WaitGraph find_waits(std::span<const RankState> ranks, GroupMembers& members);

}  // namespace phalanx
