// NcclWatchdog: a thread that looks after operations which nobody on the host waits for, and what
// has failed.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace phalanx {

class NcclWatched {
 public:
  virtual ~NcclWatched() = default;
  /// Called on the watchdog's thread, now and then. Must not throw.
  virtual void look() = 0;
};

/// The rank's thread may be stuck in a download that an operation without end holds up; therefore
/// it cannot look itself.
class NcclWatchdog {
 public:
  /// Looks every `interval`, with GPU `device_index` as the thread's device.
  NcclWatchdog(std::chrono::milliseconds interval, int device_index);
  ~NcclWatchdog();
  NcclWatchdog(const NcclWatchdog&) = delete;
  NcclWatchdog& operator=(const NcclWatchdog&) = delete;

  void add(NcclWatched& watched);
  /// After it returns nobody looks at `watched` any more.
  void remove(NcclWatched& watched);

  /// The first failure of any communicator of this rank. Said before the communicator is aborted,
  /// because what then comes out of the GPU is not to be used.
  void report_failure(const std::string& text);
  /// Throws if there was a failure, wherever: the host may be a whole step ahead of the GPU, and
  /// must not take the step's results for good because another group carried them.
  void throw_if_failed();

 private:
  void run(int device_index);

  std::chrono::milliseconds interval_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;
  std::atomic<bool> failed_ = false;
  std::mutex failure_mutex_;  // of its own: reported from inside `look` too
  std::string failure_;
  std::vector<NcclWatched*> watched_;
  std::thread thread_;
};

}  // namespace phalanx
