// The walk over the graph of waits, and the words for what it finds.
#include "core/train/hang_diagnosis.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

namespace phalanx {
namespace {

constexpr double kNanoseconds = 1e-9;
constexpr size_t kMostSentences = 8;
constexpr size_t kMostInCircle = 6;

std::string seconds_text(double seconds) {
  return fmt::format("{:.0f} s", std::max(0.0, seconds));
}

/// "has not entered" of more than one.
std::string plural(std::string words) {
  for (const auto& [one, more] :
       {std::pair("has ", "have "), std::pair("does ", "do "), std::pair("waits ", "wait ")})
    if (words.starts_with(one)) return more + words.substr(std::string_view(one).size());
  return words;
}

/// One or more ranks of one node of which the same is said.
struct Finding {
  std::string node;
  std::string words;  // without durations: what makes findings equal
  std::vector<int64_t> ranks = {};
  double seconds = 0;
  std::string_view since = " for ";  // before the seconds
  std::string_view before;           // the whole
};

/// An entry that is no wait for other ranks.
bool is_work(const FlightEntry& entry) {
  return entry.kind == FlightKind::file || entry.kind == FlightKind::phase;
}

/// Files first, the longest of them first; then the innermost phases.
std::vector<FlightEntry> occupations(const FlightRecord& record) {
  std::vector<FlightEntry> work;
  std::ranges::copy_if(record.open, std::back_inserter(work), is_work);
  const auto before = [](const FlightEntry& a, const FlightEntry& b) {
    if ((a.kind == FlightKind::file) != (b.kind == FlightKind::file))
      return a.kind == FlightKind::file;
    return a.kind == FlightKind::file ? a.number < b.number : a.number > b.number;
  };
  std::ranges::sort(work, before);
  constexpr size_t kMost = 2;
  if (work.size() > kMost) work.resize(kMost);
  return work;
}

std::string entry_text(const FlightEntry& entry) {
  const std::string where = flight_text(entry.where);
  const std::string group = flight_text(entry.group);
  std::string text = flight_text(entry.what);
  if (!where.empty()) text += " " + where;
  if (!group.empty()) text += fmt::format(" #{} of {}", entry.sequence, group);
  return "`" + text + "`";
}

class Doctor {
 public:
  Doctor(std::span<const RankState> ranks, const DeviceMesh& mesh)
      : ranks_(ranks), members_(mesh), graph_(find_waits(ranks, members_)) {}

  Diagnosis diagnose() {
    suspect_the_silent();
    suspect_the_waited_for();
    tell_of_different_orders();
    if (nothing_found()) tell_of_a_circle();
    if (nothing_found()) tell_of_unending_waits();
    if (nothing_found()) suspect_the_behind();
    if (nothing_found()) suspect_everybody();
    write_sentences();
    return std::move(result_);
  }

 private:
  const RankState& state(int64_t rank) const { return ranks_[static_cast<size_t>(rank)]; }
  int64_t point_of(int64_t rank) const { return graph_.point_of_rank[static_cast<size_t>(rank)]; }
  bool nothing_found() const { return findings_.empty() && result_.sentences.empty(); }

  std::string name(int64_t rank) const {
    const std::string& node = state(rank).record.owner.node;
    return fmt::format("rank {} on {}", rank, node.empty() ? "an unknown node" : node);
  }

  /// What the rank does by itself, without durations.
  std::string doing(int64_t rank) const {
    const RankState& rank_state = state(rank);
    const FlightRecord& record = rank_state.record;
    if (rank_state.life == RankLife::ended) return "it has ended";
    std::string text;
    for (const FlightEntry& entry : occupations(record))
      text += (text.empty() ? "it is in " : " and in ") + entry_text(entry);
    if (text.empty() && !record.history.empty())
      text = "it has begun nothing since " + entry_text(record.history.back());
    if (text.empty()) text = "it has not begun anything";
    return record.step > 0 ? fmt::format("{} (step {})", text, record.step) : text;
  }

  /// For how long, by its own clock.
  double doing_seconds(int64_t rank) const {
    const FlightRecord& record = state(rank).record;
    const auto work = occupations(record);
    const int64_t since = work.empty() ? record.progress_ns : work.front().begin_ns;
    return kNanoseconds * static_cast<double>(record.heartbeat_ns - since);
  }

  /// "reduce_scatter #412 of dp_cp (ranks 1, 5), in which rank 1 waits for 31 s"
  std::string point_text(const WaitPoint& point) const {
    const char* verb = point.waiters.size() == 1 ? "waits" : "wait";
    const char* noun = point.waiters.size() == 1 ? "rank" : "ranks";
    return fmt::format("{} #{} of {} (ranks {}), in which {} {} {} for {}", point.operation,
                       point.sequence, point.group, ranks_text(point.members), noun,
                       ranks_text(point.waiters), verb, seconds_text(point.seconds));
  }

  Finding& add(int64_t rank, const std::string& words, double seconds) {
    const std::string& node = state(rank).record.owner.node;
    const auto [place, is_new] = finding_of_.try_emplace(node + '\n' + words, findings_.size());
    if (is_new) findings_.push_back({.node = node, .words = words});
    Finding& finding = findings_[place->second];
    finding.ranks.push_back(rank);
    finding.seconds = std::max(finding.seconds, seconds);
    suspects_.insert(rank);
    return finding;
  }

  void suspect_the_waited_for() {
    // Where most ranks wait first: that is what people see of a hang.
    std::vector<const WaitPoint*> points;
    for (const WaitPoint& point : graph_.points) points.push_back(&point);
    std::ranges::stable_sort(points, std::greater<>(),
                             [](const WaitPoint* point) { return point->waiters.size(); });
    for (const WaitPoint* point : points)
      for (const int64_t rank : point->missing) {
        const RankLife life = state(rank).life;
        if (point_of(rank) >= 0 || suspects_.contains(rank)) continue;
        if (life != RankLife::answers && life != RankLife::ended) continue;
        const char* missing = point->message ? "has not sent its message of" : "has not entered";
        add(rank, fmt::format("{} {}; {}", missing, point_text(*point), doing(rank)),
            doing_seconds(rank));
      }
  }

  std::string waited_for(int64_t rank) const {
    for (const WaitPoint& point : graph_.points)
      if (std::ranges::find(point.missing, rank) != point.missing.end())
        return "; it is waited for in " + point_text(point);
    return "";
  }

  void suspect_the_silent() {
    for (size_t i = 0; i < ranks_.size(); ++i) {
      const auto rank = static_cast<int64_t>(i);
      const RankState& silent = ranks_[i];
      if (silent.life == RankLife::unread)
        add(rank, "has left no flight record that could be read", 0);
      if (silent.life != RankLife::silent) continue;
      const std::string why =
          silent.process.empty()
              ? "it is stopped, dead, or its node is gone"
              : fmt::format("process {} {}", silent.record.process, silent.process);
      std::string last = doing(rank);
      if (last.starts_with("it is in ")) last = "last seen in " + last.substr(9);
      add(rank, fmt::format("does not answer: {}; {}{}", why, last, waited_for(rank)),
          silent.silent_seconds)
          .since = "; no heartbeat for ";
    }
  }

  /// The operation that `rank` has entered under a number; empty if its history is too short.
  std::string operation_at(int64_t rank, const WaitPoint& point) const {
    const FlightRecord& record = state(rank).record;
    std::string found;
    for (const auto* entries : {&record.history, &record.open})
      for (const FlightEntry& entry : *entries)
        if ((entry.kind == FlightKind::collective || entry.kind == FlightKind::wait) &&
            entry.sequence == point.sequence && flight_text(entry.group) == point.group)
          found = flight_text(entry.what);
    return found;
  }

  void tell_of_different_orders() {
    std::set<std::pair<std::string, int64_t>> told;
    for (const WaitPoint& point : graph_.points) {
      if (point.message || point.members.empty()) continue;
      if (!told.emplace(point.group, point.members.front()).second) continue;
      std::map<std::string, std::vector<int64_t>> callers;
      for (const int64_t rank : point.members)
        if (const std::string operation = operation_at(rank, point); !operation.empty())
          callers[operation].push_back(rank);
      if (callers.size() < 2) continue;
      std::string text;
      for (const auto& [operation, callers_of] : callers) {
        text += fmt::format("{}{} for rank{} {} on {}", text.empty() ? "" : " and ", operation,
                            callers_of.size() > 1 ? "s" : "", ranks_text(callers_of),
                            state(callers_of.front()).record.owner.node);
        suspects_.insert(callers_of.begin(), callers_of.end());
      }
      result_.sentences.push_back(
          fmt::format("the ranks of {} (ranks {}) disagree about the order of their collectives: "
                      "#{} is {}",
                      point.group, ranks_text(point.members), point.sequence, text));
    }
  }

  void tell_of_a_circle() {
    for (size_t start = 0; start < ranks_.size(); ++start) {
      std::vector<int64_t> path;
      int64_t rank = static_cast<int64_t>(start);
      while (rank >= 0 && std::ranges::find(path, rank) == path.end()) {
        path.push_back(rank);
        const int64_t point = point_of(rank);
        const bool goes_on =
            point >= 0 && !graph_.points[static_cast<size_t>(point)].missing.empty();
        rank = goes_on ? graph_.points[static_cast<size_t>(point)].missing.front() : -1;
      }
      if (rank < 0) continue;
      path.erase(path.begin(), std::ranges::find(path, rank));
      return tell_circle(path);
    }
  }

  void tell_circle(const std::vector<int64_t>& path) {
    std::string text;
    for (size_t i = 0; i < path.size() && i < kMostInCircle; ++i) {
      const WaitPoint& point = graph_.points[static_cast<size_t>(point_of(path[i]))];
      text += fmt::format("{}{} in {} #{} of {} for rank {}", i == 0 ? "" : "; ", name(path[i]),
                          point.operation, point.sequence, point.group, point.missing.front());
    }
    if (path.size() > kMostInCircle) text += fmt::format("; {} in all", path.size());
    suspects_.insert(path.begin(), path.end());
    result_.sentences.push_back("ranks wait for each other in a circle: " + text);
  }

  void tell_of_unending_waits() {
    for (const WaitPoint& point : graph_.points) {
      const char* why = point.message || point.members.empty()
                            ? "does not end"
                            : "does not end though all have entered it: is the network in order?";
      if (result_.sentences.size() < kMostSentences)
        result_.sentences.push_back(point_text(point) + ", " + why);
    }
  }

  /// Collectives of a device are handed in without waiting: then only the numbers tell.
  void suspect_the_behind() {
    std::map<std::pair<std::string, int64_t>, int64_t> most;
    const auto each = [&](auto&& act) {
      for (size_t i = 0; i < ranks_.size(); ++i)
        for (const FlightGroup& group : ranks_[i].record.groups) {
          const auto rank = static_cast<int64_t>(i);
          const auto& ranks = members_.of(flight_text(group.name), rank);
          if (ranks.size() > 1)
            act(rank, group, most[{flight_text(group.name), ranks.front()}], ranks);
        }
    };
    each([](int64_t, const FlightGroup& group, int64_t& entered, const auto&) {
      entered = std::max(entered, group.collectives);
    });
    each([&](int64_t rank, const FlightGroup& group, int64_t entered, const auto& ranks) {
      if (group.collectives >= entered || suspects_.contains(rank)) return;
      add(rank,
          fmt::format("has entered {} collectives of {} (ranks {}), others {}; {}",
                      group.collectives, flight_text(group.name), ranks_text(ranks), entered,
                      doing(rank)),
          doing_seconds(rank));
    });
  }

  /// Suspect is who does what fewer than half of the ranks do; the others are told of after them.
  void suspect_everybody() {
    std::map<std::string, size_t> doers;
    for (size_t rank = 0; rank < ranks_.size(); ++rank) ++doers[doing(static_cast<int64_t>(rank))];
    for (size_t i = 0; i < ranks_.size(); ++i) {
      const auto rank = static_cast<int64_t>(i);
      if (ranks_[i].life != RankLife::answers) continue;
      const bool usual = ranks_.size() > 1 && 2 * doers[doing(rank)] >= ranks_.size();
      Finding& finding = add(rank, "waits for no other rank; " + doing(rank), doing_seconds(rank));
      if (!usual) continue;
      finding.before = "also ";
      suspects_.erase(rank);
    }
    std::ranges::stable_sort(findings_, {},
                             [](const Finding& finding) { return finding.ranks.size(); });
  }

  void write_sentences() {
    std::vector<int64_t> others;
    for (const Finding& finding : findings_) {
      if (result_.sentences.size() >= kMostSentences) {
        others.insert(others.end(), finding.ranks.begin(), finding.ranks.end());
        continue;
      }
      const bool one = finding.ranks.size() == 1;
      std::string text = fmt::format("{}rank{} {} on {} {}", finding.before, one ? "" : "s",
                                     ranks_text(finding.ranks),
                                     finding.node.empty() ? "an unknown node" : finding.node,
                                     one ? finding.words : plural(finding.words));
      if (finding.seconds > 0) text.append(finding.since).append(seconds_text(finding.seconds));
      result_.sentences.push_back(text);
    }
    std::ranges::sort(others);
    if (!others.empty())
      result_.sentences.push_back(
          fmt::format("and {} more: ranks {}", others.size(), ranks_text(others)));
    result_.suspects.assign(suspects_.begin(), suspects_.end());
    for (const int64_t rank : suspects_) {
      const std::string& node = state(rank).record.owner.node;
      if (!node.empty() && std::ranges::find(result_.nodes, node) == result_.nodes.end())
        result_.nodes.push_back(node);
    }
  }

  std::span<const RankState> ranks_;
  GroupMembers members_;
  WaitGraph graph_;
  std::vector<Finding> findings_;
  std::map<std::string, size_t> finding_of_;
  std::set<int64_t> suspects_;
  Diagnosis result_;
};

}  // namespace

std::string ranks_text(std::span<const int64_t> ranks) {
  constexpr int kMostParts = 8;
  std::string text;
  int parts = 0;
  for (size_t begin = 0, end = 0; begin < ranks.size(); begin = end) {
    for (end = begin + 1; end < ranks.size() && ranks[end] == ranks[end - 1] + 1;) ++end;
    if (++parts > kMostParts) return text + fmt::format(" and {} more", ranks.size() - begin);
    if (!text.empty()) text += ", ";
    // Two in a row read better as two.
    if (end - begin == 1) text += fmt::format("{}", ranks[begin]);
    if (end - begin == 2) text += fmt::format("{}, {}", ranks[begin], ranks[begin + 1]);
    if (end - begin > 2) text += fmt::format("{}-{}", ranks[begin], ranks[end - 1]);
  }
  return text;
}

Diagnosis diagnose(std::span<const RankState> ranks, const DeviceMesh& mesh) {
  check(static_cast<int64_t>(ranks.size()) == mesh.world_size(), "a diagnosis of ", ranks.size(),
        " ranks in a mesh of ", mesh.world_size());
  return Doctor(ranks, mesh).diagnose();
}

}  // namespace phalanx
