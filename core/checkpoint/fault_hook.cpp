// PHALANX_FAULT: read once, counted, carried out.
#include "core/checkpoint/fault_hook.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <list>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/log.h"

namespace phalanx {
namespace {

constexpr std::array<std::string_view, 8> kMoments{"step",   "snapshot", "shard",    "commit",
                                                   "latest", "retire",   "evaluate", "data"};

enum class FaultAction : uint8_t { kill, hang, slow };
constexpr std::array<std::string_view, 3> kActions{"kill", "hang", "slow"};

struct Fault {
  FaultAction action = FaultAction::kill;
  std::string moment;
  int64_t count = 0;
  int64_t rank = -1;                 // -1: any
  std::atomic<int64_t> passages{0};  // of this moment and rank, by any thread
};

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

/// Throws unless `text` is a number from `least`.
int64_t number_of(std::string_view text, int64_t least) {
  int64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  check_usage(error == std::errc() && stop == end && number >= least, "\"", text,
              "\" is not a number from ", least);
  return number;
}

void parse_fault(std::string_view text, Fault& fault) {
  const auto parts = split(text, ':');
  check_usage(parts.size() == 3 || parts.size() == 4, "it has ", parts.size(), " parts");
  const auto action = std::ranges::find(kActions, parts[0]);
  check_usage(action != kActions.end(), "\"", parts[0], "\" is no action");
  check_usage(std::ranges::count(kMoments, parts[1]) == 1, "\"", parts[1], "\" is no moment");
  fault.action = static_cast<FaultAction>(action - kActions.begin());
  check_usage(fault.action != FaultAction::slow || parts[1] == "step", "slow is for step only");
  fault.moment = parts[1];
  fault.count = number_of(parts[2], 1);
  if (parts.size() == 4) fault.rank = number_of(parts[3], 0);
}

std::list<Fault> parse_faults(const std::string& value) {
  std::list<Fault> faults;  // a list, because counters cannot be moved
  for (const std::string_view text : split(value, ',')) {
    try {
      parse_fault(text, faults.emplace_back());
    } catch (const UsageError& error) {
      throw UsageError(fmt::format(
          "PHALANX_FAULT={}: {} in \"{}\". The form is ACTION:MOMENT:COUNT[:RANK], more after a "
          "comma, with ACTION {}, MOMENT {}, COUNT from 1, RANK from 0",
          value, error.what(), text, fmt::join(kActions, " "), fmt::join(kMoments, " ")));
    }
  }
  return faults;
}

std::chrono::duration<double> fault_seconds() {
  const char* value = std::getenv("PHALANX_FAULT_SECONDS");
  if (value == nullptr) return std::chrono::duration<double>(3600);
  double seconds = 0;
  const char* end = value + std::strlen(value);
  const auto [stop, error] = std::from_chars(value, end, seconds);
  check_usage(error == std::errc() && stop == end && seconds >= 0 && std::isfinite(seconds),
              "PHALANX_FAULT_SECONDS: \"", value, "\" is not a number from 0");
  return std::chrono::duration<double>(seconds);
}

void carry_out(const Fault& fault, int rank) {
  log_info("PHALANX_FAULT: rank {} {}s at passage {} of {}", rank,
           fault.action == FaultAction::kill ? "die" : "hang", fault.count, fault.moment);
  if (fault.action == FaultAction::kill) {
    std::raise(SIGKILL);
  } else {
    std::this_thread::sleep_for(fault_seconds());
  }
}

/// Null in a process without faults.
std::list<Fault>* all_faults() {
  const char* value = std::getenv("PHALANX_FAULT");
  if (value == nullptr) return nullptr;
  static std::list<Fault> faults = parse_faults(value);
  return &faults;
}

/// How often `fault`'s moment has come on its rank, this time included; 0 if this is not it.
int64_t count_passage(Fault& fault, std::string_view moment, int rank) {
  if (fault.moment != moment || (fault.rank >= 0 && fault.rank != rank)) return 0;
  return fault.passages.fetch_add(1) + 1;
}

}  // namespace

void fault_moment(std::string_view moment, int rank) {
  std::list<Fault>* faults = all_faults();
  if (faults == nullptr) return;
  for (Fault& fault : *faults)
    if (fault.action != FaultAction::slow && count_passage(fault, moment, rank) == fault.count)
      carry_out(fault, rank);
}

void fault_slowness(std::string_view moment, int rank) {
  std::list<Fault>* faults = all_faults();
  if (faults == nullptr) return;
  for (Fault& fault : *faults) {
    if (fault.action != FaultAction::slow) continue;
    const int64_t passage = count_passage(fault, moment, rank);
    if (passage < fault.count) continue;
    if (passage == fault.count)
      log_info("PHALANX_FAULT: rank {} is slow from passage {} of {} on", rank, passage, moment);
    std::this_thread::sleep_for(fault_seconds());
  }
}

}  // namespace phalanx
