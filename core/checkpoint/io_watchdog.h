// IoWatchdog: says aloud when reading or writing a file takes longer than it should.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace phalanx {

/// A thread that looks at the clock. While a `Watch` lives longer than the limit, `report` is
/// called with "rank 3 has been writing SAVE/.../shard_00003.h5 for 31 s", again after every
/// further limit.
class IoWatchdog {
 public:
  /// `who` begins the sentence ("rank 3"). A limit of 0 watches nothing.
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
    int64_t number_;
  };

 private:
  // (members to be chosen)
};

}  // namespace phalanx
