// The thread that sleeps until the next file operation is over its time.
#include "core/checkpoint/io_watchdog.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace phalanx {
namespace {

/// "31 s"; below ten seconds with a decimal.
std::string seconds_text(std::chrono::duration<double> time) {
  return time.count() < 10 ? fmt::format("{:.1f} s", time.count())
                           : fmt::format("{:.0f} s", time.count());
}

}  // namespace

IoWatchdog::IoWatchdog(std::string who, std::chrono::milliseconds limit,
                       std::function<void(const std::string&)> report)
    : who_(std::move(who)), limit_(limit), report_(std::move(report)) {
  if (limit_.count() > 0) thread_ = std::thread([this] { run(); });
}

IoWatchdog::~IoWatchdog() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void IoWatchdog::run() {
  std::unique_lock lock(mutex_);
  while (!ends_) {
    if (operations_.empty()) {
      changed_.wait(lock);
    } else {
      changed_.wait_until(lock, next_report());
    }
    const std::vector<std::string> reports = due_reports(Clock::now());
    lock.unlock();  // because a slow log must not hold up the threads that read and write
    for (const std::string& text : reports) report_(text);
    lock.lock();
  }
}

IoWatchdog::Clock::time_point IoWatchdog::next_report() const {
  auto next = Clock::time_point::max();
  for (const auto& [number, operation] : operations_) next = std::min(next, operation.next_report);
  return next;
}

std::vector<std::string> IoWatchdog::due_reports(Clock::time_point now) {
  std::vector<std::string> reports;
  for (auto& [number, operation] : operations_) {
    if (now < operation.next_report) continue;
    reports.push_back(fmt::format("{} has been {} {} for {}", who_, operation.doing, operation.file,
                                  seconds_text(now - operation.begin)));
    operation.next_report = now + limit_;
  }
  return reports;
}

IoWatchdog::Watch::Watch(IoWatchdog& watchdog, std::string doing, std::string file)
    : watchdog_(watchdog), flight_(flight_entry(FlightKind::file, doing, file)) {
  const auto now = Clock::now();
  {
    const std::lock_guard lock(watchdog_.mutex_);
    number_ = watchdog_.next_number_++;
    watchdog_.operations_.emplace(
        number_, Operation{std::move(doing), std::move(file), now, now + watchdog_.limit_});
  }
  watchdog_.changed_.notify_one();
}

IoWatchdog::Watch::~Watch() {
  const std::lock_guard lock(watchdog_.mutex_);
  watchdog_.operations_.erase(number_);
}

}  // namespace phalanx
