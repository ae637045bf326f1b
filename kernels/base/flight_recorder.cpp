// The ring of a flight recorder, the file that has its copy, and reading it.
#include "kernels/base/flight_recorder.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr std::array<char, 8> kMagic{'P', 'H', 'X', 'F', 'L', 'T', '0', '1'};
constexpr int kOpen = 32;      // threads that do something at the same time
constexpr int kHistory = 224;  // what a few layers of a step enter
constexpr int kGroups = 16;

std::atomic<FlightRecorder*> current_recorder{nullptr};

/// The text's end if it is too long, because a file's name says more than its folder's.
template <size_t size>
void put(std::array<char, size>& field, std::string_view text) {
  if (text.size() >= size) text.remove_prefix(text.size() - (size - 1));
  field.fill('\0');
  std::ranges::copy(text, field.begin());
}

template <size_t size>
std::string text_of(const std::array<char, size>& field) {
  return {field.data(), strnlen(field.data(), size)};
}

bool counts_in_group(FlightKind kind) {
  return kind == FlightKind::collective || kind == FlightKind::exchange;
}

/// A few nanoseconds instead of twenty, exact to a few milliseconds: enough for what counts
/// seconds.
int64_t coarse_now() {
  timespec time{};
  clock_gettime(CLOCK_REALTIME_COARSE, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

/// Plain memory that other processes read while it changes: readers check what they find.
struct FlightRecorder::File {
  std::array<char, 8> magic;
  int32_t rank;
  int32_t world_size;
  int64_t process;
  int64_t started_ns;
  std::array<char, 64> node;
  std::atomic<int64_t> heartbeat_ns;
  std::atomic<int64_t> progress_ns;
  std::atomic<int64_t> step;
  std::atomic<int64_t> ended;
  std::atomic<int64_t> entries;                   // begun so far
  std::array<std::atomic<int32_t>, kOpen> taken;  // 1: the slot of `open` has an owner
  std::array<FlightGroup, kGroups> groups;        // written by the thread that communicates
  std::array<FlightEntry, kOpen> open;
  std::array<FlightEntry, kHistory> history;  // entry n at n % kHistory
};

int64_t nanoseconds_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

FlightRecorder::FlightRecorder(const std::string& path, const FlightOwner& owner) {
  unlink(path.c_str());
  descriptor_ = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  check(descriptor_ >= 0, "cannot make ", path, ": ", std::strerror(errno));
  // Not a mapping of the file: after every write-back the next store would wait for the file
  // system, and a step for as long as a server of it takes to come back.
  void* memory =
      mmap(nullptr, sizeof(File), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const int error = memory == MAP_FAILED ? errno : posix_fallocate(descriptor_, 0, sizeof(File));
  if (error != 0) {
    close(descriptor_);
    fail("no room for ", path, ": ", std::strerror(error));
  }
  file_ = new (memory) File{};
  file_->magic = kMagic;
  file_->rank = owner.rank;
  file_->world_size = owner.world_size;
  file_->process = getpid();
  file_->started_ns = nanoseconds_now();
  put(file_->node, owner.node);
  progress();
  heartbeat();
  FlightRecorder* nobody = nullptr;
  if (current_recorder.compare_exchange_strong(nobody, this)) return;
  close(descriptor_);
  fail("this process has a flight recorder already");
}

/// The ring stays mapped: a thread that was let go of may still end its entry.
FlightRecorder::~FlightRecorder() {
  current_recorder = nullptr;
  file_->ended = 1;
  heartbeat();
  close(descriptor_);
}

FlightRecorder* FlightRecorder::current() {
  return current_recorder.load(std::memory_order_relaxed);
}

void FlightRecorder::begin_step(int64_t step) {
  file_->step.store(step, std::memory_order_relaxed);
  progress();
}

void FlightRecorder::progress() {
  file_->progress_ns.store(coarse_now(), std::memory_order_relaxed);
}

void FlightRecorder::heartbeat() {
  file_->heartbeat_ns.store(nanoseconds_now(), std::memory_order_relaxed);
  publish();
}

/// Opened, written, closed: because at the close NFS brings to the server what others shall read,
/// while a local file system need not go to the disk. By the descriptor, so that it is this
/// process's inode whatever has that name by now. A failure shows as a heart that stands still.
void FlightRecorder::publish() {
  const std::string path = "/proc/self/fd/" + std::to_string(descriptor_);
  const int descriptor = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  const ssize_t written = pwrite(descriptor, file_, sizeof(File), 0);
  (void)written;
  close(descriptor);
}

int64_t FlightRecorder::progress_ns() const {
  return file_->progress_ns.load(std::memory_order_relaxed);
}

int64_t FlightRecorder::step() const {
  return file_->step.load(std::memory_order_relaxed);
}

int64_t* FlightRecorder::group_count(const FlightEntry& entry) {
  for (FlightGroup& group : file_->groups) {
    if (group.name[0] == '\0') group.name = entry.group;
    if (group.name == entry.group)
      return entry.kind == FlightKind::collective ? &group.collectives : &group.exchanges;
  }
  return nullptr;
}

int FlightRecorder::begin(const FlightEntry& entry) {
  progress();
  if (counts_in_group(entry.kind))
    if (int64_t* count = group_count(entry)) *count = entry.sequence;
  for (int slot = 0; slot < kOpen; ++slot) {
    int32_t free = 0;
    auto& taken = file_->taken[static_cast<size_t>(slot)];
    if (!taken.compare_exchange_strong(free, 1, std::memory_order_acquire)) continue;
    FlightEntry& mine = file_->open[static_cast<size_t>(slot)];
    mine = entry;
    mine.begin_ns = progress_ns();
    mine.step = step();
    mine.number = ++file_->entries;
    return slot;
  }
  return -1;
}

void FlightRecorder::end(int slot) {
  if (slot < 0) return;
  progress();
  FlightEntry& mine = file_->open[static_cast<size_t>(slot)];
  mine.end_ns = progress_ns();
  file_->history[static_cast<size_t>(mine.number % kHistory)] = mine;
  mine.number = 0;
  file_->taken[static_cast<size_t>(slot)].store(0, std::memory_order_release);
}

FlightEntry flight_entry(FlightKind kind, std::string_view what, std::string_view where) {
  FlightEntry entry{};
  entry.peer = -1;
  entry.kind = kind;
  put(entry.what, what);
  put(entry.where, where);
  return entry;
}

FlightRange::FlightRange(const FlightEntry& entry) {
  if (FlightRecorder* recorder = FlightRecorder::current()) slot_ = recorder->begin(entry);
}

FlightRange::FlightRange(FlightKind kind, std::string_view what, std::string_view group,
                         int64_t sequence, int peer) {
  FlightRecorder* recorder = FlightRecorder::current();
  if (recorder == nullptr) return;
  FlightEntry entry = flight_entry(kind, what);
  entry.sequence = sequence;
  entry.peer = peer;
  put(entry.group, group);
  slot_ = recorder->begin(entry);
}

FlightRange::~FlightRange() {
  if (FlightRecorder* recorder = FlightRecorder::current()) recorder->end(slot_);
}

void flight_progress() {
  if (FlightRecorder* recorder = FlightRecorder::current()) recorder->progress();
}

void flight_step(int64_t step) {
  if (FlightRecorder* recorder = FlightRecorder::current()) recorder->begin_step(step);
}

/// Others write meanwhile: what is torn is left out.
static FlightRecord record_of(const FlightRecorder::File& file) {
  FlightRecord record{.owner = {file.rank, file.world_size, text_of(file.node)},
                      .process = file.process,
                      .started_ns = file.started_ns,
                      .heartbeat_ns = file.heartbeat_ns,
                      .progress_ns = file.progress_ns,
                      .step = file.step,
                      .ended = file.ended != 0};
  const auto keep = [](auto& list, auto entry) {
    entry.group.back() = entry.what.back() = entry.where.back() = '\0';
    if (entry.number > 0) list.push_back(entry);
  };
  for (FlightGroup group : file.groups) {
    group.name.back() = '\0';
    if (group.name[0] != '\0') record.groups.push_back(group);
  }
  for (const FlightEntry& entry : file.open) keep(record.open, entry);
  for (const FlightEntry& entry : file.history) keep(record.history, entry);
  std::ranges::sort(record.open, {}, &FlightEntry::number);
  std::ranges::sort(record.history, {}, &FlightEntry::number);
  return record;
}

FlightRecord FlightRecorder::record() const {
  return record_of(*file_);
}

FlightRecord read_flight_record(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  check(stream.good(), "cannot read ", path, ": ", std::strerror(errno));
  std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
  check(bytes.size() == sizeof(FlightRecorder::File) &&
            std::equal(kMagic.begin(), kMagic.end(), bytes.begin()),
        path, " is no flight record of this version (", bytes.size(), " bytes)");
  // A copy into properly aligned memory.
  alignas(FlightRecorder::File) static thread_local std::array<char, sizeof(FlightRecorder::File)>
      copy;
  std::ranges::copy(bytes, copy.begin());
  return record_of(*reinterpret_cast<const FlightRecorder::File*>(copy.data()));
}

}  // namespace phalanx
