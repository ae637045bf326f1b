// The records of a run's ledger and of its steps in one order of time.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace phalanx {

/// A record and when it was written: nanoseconds since 1970, as far as clocks could be put right.
struct RunEvent {
  int64_t time = 0;
  const nlohmann::json* record = nullptr;
  std::string kind;  // "event" of the record; "step" and "validation" of those without one
  bool in_ledger = false;
};

/// All records that say a time, borrowed. Times never go back: a start whose clock is behind the
/// records before it is shifted behind them, with its steps; other steps back are a clock that was
/// put right, and taken to be at the time before.
std::vector<RunEvent> run_timeline(const std::vector<nlohmann::json>& ledger,
                                   const std::vector<nlohmann::json>& metrics);

/// Number of a field, `otherwise` if it is absent or none.
double number_of(const nlohmann::json& record, const char* field, double otherwise = 0);
std::string text_of(const nlohmann::json& record, const char* field);
/// Nanoseconds of a field that says a duration in seconds, from 0.
int64_t duration_of(const nlohmann::json& record, const char* field);

}  // namespace phalanx
