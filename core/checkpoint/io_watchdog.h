// IoWatchdog: says aloud when reading or writing a file takes longer than it should.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/flight_recorder.h"

namespace phalanx {

/// A thread that looks at the clock. While a `Watch` lives longer than the limit, `report` is
/// called with "rank 3 has been writing SAVE/.../shard_00003.h5 for 31 s", again after every
/// further limit.
class IoWatchdog {
 public:
  /// `who` begins the sentence ("rank 3"). A limit of 0 watches nothing. `report` is called in the
  /// watchdog's thread and must not throw. No watch may outlive the watchdog.
  IoWatchdog(std::string who, std::chrono::milliseconds limit,
             std::function<void(const std::string&)> report);
  ~IoWatchdog();
  IoWatchdog(const IoWatchdog&) = delete;
  IoWatchdog& operator=(const IoWatchdog&) = delete;

  /// One file operation under watch, from construction to destruction. Several at a time may live,
  /// in any threads.
  class Watch {
   public:
    /// "writing", "reading", "syncing", ... and the file.
    Watch(IoWatchdog& watchdog, std::string doing, std::string file);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    IoWatchdog& watchdog_;
    FlightRange flight_;
    int64_t number_;
  };

 private:
  using Clock = std::chrono::steady_clock;
  struct Operation {
    std::string doing;
    std::string file;
    Clock::time_point begin;
    Clock::time_point next_report;
  };

  void run();
  /// When the next report is due, if any operation is under way. Under the mutex.
  Clock::time_point next_report() const;
  /// Sentences of all operations that are due. Under the mutex.
  std::vector<std::string> due_reports(Clock::time_point now);

  const std::string who_;
  const std::chrono::milliseconds limit_;
  const std::function<void(const std::string&)> report_;
  std::mutex mutex_;  // over what follows
  std::condition_variable changed_;
  std::map<int64_t, Operation> operations_;  // by number
  int64_t next_number_ = 0;
  bool ends_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace phalanx
