// NcclWatchdog: a thread that looks after operations which nobody on the host waits for.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
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

 private:
  void run(int device_index);

  std::chrono::milliseconds interval_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;
  std::vector<NcclWatched*> watched_;
  std::thread thread_;
};

}  // namespace phalanx
