// FlightRecorder: what a rank is doing, in a small mapped ring that a thread copies to a file every
// few seconds, so that others can read it when the rank no longer answers. Written like a log:
// nothing in a step ever reads it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx {

enum class FlightKind : uint8_t { none, phase, collective, wait, exchange, exchange_wait, file };

/// One thing a rank did or is doing. Times are nanoseconds since 1970, so that nodes compare.
struct FlightEntry {
  int64_t number;    // from 1, over all entries of the rank; 0: empty
  int64_t begin_ns;  //
  int64_t end_ns;    // 0 while under way
  int64_t step;
  int64_t sequence;  // collectives: its number among the group's, from 1; exchanges likewise
  int32_t peer;      // exchanges: rank in the group whose message is expected; -1: none
  FlightKind kind;
  std::array<char, 16> group;   // "dp_cp"; empty for phases and files
  std::array<char, 24> what;    // "reduce_scatter", "evaluate", "writing"
  std::array<char, 100> where;  // file, its end if it is longer
};

/// How far the rank is in a group's collectives, and, apart, in its exchanges.
struct FlightGroup {
  std::array<char, 16> name;
  int64_t collectives;  // entered
  int64_t exchanges;
};

/// Who writes the record.
struct FlightOwner {
  int32_t rank = 0;
  int32_t world_size = 1;
  std::string node;
};

/// The contents of a record, as far as they could be read: the rank may be writing meanwhile.
struct FlightRecord {
  FlightOwner owner;
  int64_t process = 0;  // its id on the node
  int64_t started_ns = 0;
  int64_t heartbeat_ns = 0;  // of a thread that lives while the rank's process runs
  int64_t progress_ns = 0;   // when an op, phase, collective or file was last begun or ended
  int64_t step = 0;
  bool ended = false;                // in order, by itself
  std::vector<FlightGroup> groups;   // in the order of their first use
  std::vector<FlightEntry> open;     // under way, the oldest first
  std::vector<FlightEntry> history;  // ended, the oldest first
};

/// Throws if the file is none, or of another version.
FlightRecord read_flight_record(const std::string& path);

/// One per process, of any of whose threads all methods may be called. Writing costs a few stores.
class FlightRecorder {
 public:
  /// Makes the file anew. A file of an earlier process keeps its own inode, so that a process that
  /// should be gone writes into nothing others read. Throws if it cannot be made.
  FlightRecorder(const std::string& path, const FlightOwner& owner);
  ~FlightRecorder();
  FlightRecorder(const FlightRecorder&) = delete;
  FlightRecorder& operator=(const FlightRecorder&) = delete;

  /// The process's recorder; null if it has none.
  static FlightRecorder* current();

  void begin_step(int64_t step);
  /// Something went on. Cheap enough for every op.
  void progress();
  /// The process is alive; brings the file up to date, for other nodes too. Waits for the file
  /// system, so it is for a thread of its own. One thread at a time.
  void heartbeat();
  /// The slot of the new entry for `end`; -1 if too many are open, and then nothing is kept.
  int begin(const FlightEntry& entry);
  void end(int slot);
  /// Nanoseconds since 1970 of the last progress.
  int64_t progress_ns() const;
  int64_t step() const;
  /// What the file would say if it were up to date.
  FlightRecord record() const;

  struct File;  // the mapped bytes

 private:
  int64_t* group_count(const FlightEntry& entry);
  void publish();

  int descriptor_ = -1;
  File* file_ = nullptr;
};

/// An entry to begin. `where` is for files.
FlightEntry flight_entry(FlightKind kind, std::string_view what, std::string_view where = {});

/// One entry, as long as the object lives. For what may take seconds. Does nothing in a process
/// without a recorder.
class FlightRange {
 public:
  explicit FlightRange(const FlightEntry& entry);
  /// Of a group: `sequence` as in FlightEntry.
  FlightRange(FlightKind kind, std::string_view what, std::string_view group, int64_t sequence,
              int peer);
  ~FlightRange();
  FlightRange(const FlightRange&) = delete;
  FlightRange& operator=(const FlightRange&) = delete;

 private:
  int slot_ = -1;
};

/// Progress of a long piece of work that is no op and has no entries of its own: for every part.
void flight_progress();
/// The same for parts so small and many that only each 65536th is told.
inline void flight_progress_of(uint64_t part) {
  if ((part & 0xffff) == 0) flight_progress();
}
/// The step that begins, of a process that has a recorder.
void flight_step(int64_t step);

/// Nanoseconds since 1970.
int64_t nanoseconds_now();

}  // namespace phalanx
