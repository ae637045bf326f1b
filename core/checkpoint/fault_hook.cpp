// PHALANX_FAULT: read once, counted, carried out.
#include "core/checkpoint/fault_hook.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <list>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/log.h"

namespace phalanx {
namespace {

constexpr std::array<std::string_view, 6> kMoments{"step",   "snapshot", "shard",
                                                   "commit", "latest",   "retire"};

struct Fault {
  bool kill = false;  // or else hang
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
  check_usage(parts[0] == "kill" || parts[0] == "hang", "\"", parts[0], "\" is no action");
  check_usage(std::ranges::count(kMoments, parts[1]) == 1, "\"", parts[1], "\" is no moment");
  fault.kill = parts[0] == "kill";
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
          "comma, with ACTION kill or hang, MOMENT {}, COUNT from 1, RANK from 0",
          value, error.what(), text, fmt::join(kMoments, " ")));
    }
  }
  return faults;
}

int64_t hang_seconds() {
  const char* value = std::getenv("PHALANX_FAULT_SECONDS");
  if (value == nullptr) return 3600;
  try {
    return number_of(value, 0);
  } catch (const UsageError& error) {
    throw UsageError(std::string("PHALANX_FAULT_SECONDS: ") + error.what());
  }
}

void carry_out(const Fault& fault, int rank) {
  log_info("PHALANX_FAULT: rank {} {}s at passage {} of {}", rank, fault.kill ? "die" : "hang",
           fault.count, fault.moment);
  if (fault.kill) {
    std::raise(SIGKILL);
  } else {
    std::this_thread::sleep_for(std::chrono::seconds(hang_seconds()));
  }
}

}  // namespace

void fault_moment(std::string_view moment, int rank) {
  const char* value = std::getenv("PHALANX_FAULT");
  if (value == nullptr) return;
  static std::list<Fault> faults = parse_faults(value);
  for (Fault& fault : faults) {
    if (fault.moment != moment || (fault.rank >= 0 && fault.rank != rank)) continue;
    if (fault.passages.fetch_add(1) + 1 == fault.count) carry_out(fault, rank);
  }
}

}  // namespace phalanx
