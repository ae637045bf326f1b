// From open entries to the collectives and messages that ranks wait in.
#include "core/train/hang_waits.h"

#include <algorithm>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

#include "parallel/process_groups.h"

namespace phalanx {
namespace {

constexpr double kNanoseconds = 1e-9;

bool is_wait(const FlightEntry& entry) {
  using enum FlightKind;
  return entry.kind == collective || entry.kind == wait || entry.kind == exchange ||
         entry.kind == exchange_wait;
}

/// The newest: one thread of a rank communicates.
const FlightEntry* wait_of(const RankState& rank) {
  if (rank.life != RankLife::answers) return nullptr;
  const auto& open = rank.record.open;
  const auto found = std::find_if(open.rbegin(), open.rend(), is_wait);
  return found == open.rend() ? nullptr : &*found;
}

bool is_message(const FlightEntry& entry) {
  return entry.kind == FlightKind::exchange || entry.kind == FlightKind::exchange_wait;
}

/// Whom the waiter of a message waits for; none is known of one that only sends.
std::vector<int64_t> senders(const FlightEntry& entry, const std::vector<int64_t>& members,
                             int64_t rank) {
  const auto place = static_cast<size_t>(entry.peer);
  if (entry.peer >= 0 && place < members.size() && members[place] != rank) return {members[place]};
  if (members.size() != 2) return {};
  return {members[0] == rank ? members[1] : members[0]};
}

}  // namespace

int64_t collectives_entered(const FlightRecord& record, const std::string& group) {
  for (const FlightGroup& entered : record.groups)
    if (flight_text(entered.name) == group) return entered.collectives;
  return 0;
}

GroupMembers::GroupMembers(const DeviceMesh& mesh)
    : mesh_(mesh), worked_out_(static_cast<size_t>(mesh.world_size())) {}

const std::vector<int64_t>& GroupMembers::of(const std::string& name, int64_t rank) {
  static const std::vector<int64_t> nobody;
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (const Group& group : groups_) {
      if (group.name != name) continue;
      const int32_t instance = group.instance_of_rank[static_cast<size_t>(rank)];
      if (instance >= 0) return group.instances[static_cast<size_t>(instance)];
    }
    work_out(rank);
  }
  return nobody;
}

void GroupMembers::work_out(int64_t rank) {
  if (std::exchange(worked_out_[static_cast<size_t>(rank)], char{1}) != 0) return;
  const auto keep = [&](const std::string& name, const std::vector<int64_t>& ranks) {
    auto group = std::ranges::find(groups_, name, &Group::name);
    if (group == groups_.end()) {
      groups_.push_back({name, {}, std::vector<int32_t>(worked_out_.size(), -1)});
      group = std::prev(groups_.end());
    }
    if (group->instance_of_rank[static_cast<size_t>(rank)] < 0) {
      for (const int64_t member : ranks)
        group->instance_of_rank[static_cast<size_t>(member)] =
            static_cast<int32_t>(group->instances.size());
      group->instances.push_back(ranks);
    }
    return std::unique_ptr<ProcessGroup>();
  };
  make_process_groups(mesh_, rank, keep);  // which axes each group spans stands there only
}

WaitGraph find_waits(std::span<const RankState> ranks, GroupMembers& members) {
  WaitGraph graph;
  graph.point_of_rank.assign(ranks.size(), -1);
  // Group, its first rank, sequence; of a message the waiter and its expected sender too.
  std::map<std::tuple<std::string, int64_t, int64_t, int64_t, int64_t>, int64_t> known;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const FlightEntry* entry = wait_of(ranks[rank]);
    if (entry == nullptr) continue;
    const auto number = static_cast<int64_t>(rank);
    const std::string name = flight_text(entry->group);
    const auto& group = members.of(name, number);
    const bool message = is_message(*entry);
    const int64_t first = group.empty() ? number : group.front();
    const auto [place, is_new] =
        known.try_emplace({name, first, entry->sequence, message ? number : -1, entry->peer},
                          static_cast<int64_t>(graph.points.size()));
    if (is_new) {
      WaitPoint point{.group = name,
                      .operation = flight_text(entry->what),
                      .message = message,
                      .sequence = entry->sequence,
                      .members = group};
      if (message) point.missing = senders(*entry, group, number);
      for (const int64_t member : group)
        if (!message &&
            collectives_entered(ranks[static_cast<size_t>(member)].record, name) < entry->sequence)
          point.missing.push_back(member);
      graph.points.push_back(std::move(point));
    }
    WaitPoint& point = graph.points[static_cast<size_t>(place->second)];
    graph.point_of_rank[rank] = place->second;
    point.waiters.push_back(number);
    point.seconds = std::max(
        point.seconds,
        kNanoseconds * static_cast<double>(ranks[rank].record.heartbeat_ns - entry->begin_ns));
  }
  return graph;
}

}  // namespace phalanx
