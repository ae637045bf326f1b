// Helper threads that a file system may hold for ever, and what they have read by the deadline.
#include "core/train/hang_records.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "core/run_files.h"
#include "core/train/node_name.h"
#include "core/train/process_state.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;
using Records = std::vector<std::optional<FlightRecord>>;

constexpr size_t kReaders = 8;  // latency, not bandwidth, is what reading small files takes
constexpr auto kPause = std::chrono::milliseconds(20);

/// Shared with readers that may outlive the question.
struct Reading {
  std::vector<std::string> paths;
  std::atomic<size_t> next{0};
  std::mutex mutex;  // over what follows
  Records records;
  size_t done = 0;
};

void read_some(const std::shared_ptr<Reading>& reading) {
  for (size_t i = reading->next++; i < reading->paths.size(); i = reading->next++) {
    std::optional<FlightRecord> record;
    try {
      record = read_flight_record(reading->paths[i]);
    } catch (const std::exception&) {
      record.reset();  // what is wrong with a record does not matter beside a hang
    }
    const std::lock_guard lock(reading->mutex);
    reading->records[i] = std::move(record);
    ++reading->done;
  }
}

Records read_all(std::vector<std::string> paths, std::chrono::milliseconds patience,
                 const std::function<void()>& alive) {
  const auto reading = std::make_shared<Reading>();
  reading->records.resize(paths.size());
  reading->paths = std::move(paths);
  const size_t readers = std::min(kReaders, reading->paths.size());
  for (size_t i = 0; i < readers; ++i) std::thread(read_some, reading).detach();
  const auto end = Clock::now() + patience;
  while (Clock::now() < end) {
    {
      const std::lock_guard lock(reading->mutex);
      if (reading->done == reading->paths.size()) break;
    }
    alive();
    std::this_thread::sleep_for(kPause);
  }
  const std::lock_guard lock(reading->mutex);
  return reading->records;
}

RankState state_of(std::optional<FlightRecord> record, int64_t silence_ns) {
  RankState state;
  if (!record) return state;
  state.record = std::move(*record);
  const int64_t age = nanoseconds_now() - state.record.heartbeat_ns;
  state.life = RankLife::answers;
  if (state.record.ended)
    state.life = RankLife::ended;
  else if (std::abs(age) > silence_ns)
    state.life = RankLife::silent;
  return state;
}

std::vector<RankState> states_of(Records records, int64_t silence_ns) {
  std::vector<RankState> ranks;
  ranks.reserve(records.size());
  for (auto& record : records) ranks.push_back(state_of(std::move(record), silence_ns));
  return ranks;
}

std::vector<int64_t> heartbeats(const std::vector<RankState>& ranks) {
  std::vector<int64_t> times;
  for (const RankState& rank : ranks) times.push_back(rank.record.heartbeat_ns);
  return times;
}

/// Who seems silent but has beaten since `before` lives, however its clock goes.
void compare_hearts(const std::vector<int64_t>& before, std::vector<RankState>& ranks) {
  const std::string node = node_name();
  for (size_t i = 0; i < ranks.size(); ++i) {
    RankState& rank = ranks[i];
    if (rank.life != RankLife::silent) continue;
    if (before[i] != rank.record.heartbeat_ns) rank.life = RankLife::answers;
    rank.silent_seconds = 1e-9 * static_cast<double>(nanoseconds_now() - rank.record.heartbeat_ns);
    if (rank.record.owner.node == node) rank.process = process_state(rank.record.process);
  }
}

}  // namespace

std::vector<RankState> read_rank_states(const std::string& run_dir, int64_t world_size,
                                        const HangTimes& times,
                                        const std::function<void()>& alive) {
  std::vector<std::string> paths;
  for (int64_t rank = 0; rank < world_size; ++rank)
    paths.push_back(flight_record_path(run_dir, rank));
  const int64_t silence_ns = std::chrono::nanoseconds(times.silence).count();
  std::vector<RankState> ranks = states_of(read_all(paths, times.patience, alive), silence_ns);
  const auto seems_silent = [](const RankState& rank) { return rank.life == RankLife::silent; };
  // Where it is no hang anyway nothing needs to be proved.
  if (std::ranges::none_of(ranks, seems_silent) || time_left(ranks, times.timeout).count() > 0)
    return ranks;
  for (const auto end = Clock::now() + times.proof; Clock::now() < end;) {
    alive();
    std::this_thread::sleep_for(kPause);
  }
  const std::vector<int64_t> before = heartbeats(ranks);
  ranks.clear();  // records of thousands of ranks are some 100 MiB
  ranks = states_of(read_all(paths, times.patience, alive), silence_ns);
  compare_hearts(before, ranks);
  return ranks;
}

std::chrono::nanoseconds time_left(const std::vector<RankState>& ranks,
                                   std::chrono::nanoseconds timeout) {
  std::chrono::nanoseconds left{0};
  for (const RankState& rank : ranks) {
    if (rank.life != RankLife::answers) continue;
    const std::chrono::nanoseconds still(rank.record.heartbeat_ns - rank.record.progress_ns);
    left = std::max(left, timeout - still);
  }
  return left;
}

}  // namespace phalanx
