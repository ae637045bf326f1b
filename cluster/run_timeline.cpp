// Puts clocks right, start by start, and merges the two files.
#include "cluster/run_timeline.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace phalanx {
namespace {

constexpr double kNanoseconds = 1e9;
constexpr double kLatestTime = 9e9;  // what 64 bits of nanoseconds hold, and no clock says
// A start writes into both files at once.
constexpr int64_t kSameMoment = 5'000'000'000;
constexpr int64_t kNever = std::numeric_limits<int64_t>::min();

/// When a start of training was recorded, and how much later it is taken to be.
struct KnownStart {
  int64_t raw = 0;
  int64_t shift = 0;
};

std::string kind_of(const nlohmann::json& record) {
  if (record.contains("event")) return text_of(record, "event");
  if (record.contains("lm_loss")) return "step";
  return record.contains("validation_loss") ? "validation" : "";
}

bool is_begin(const std::string& kind) {
  return kind == "submitted" || kind == "attempt_begin" || kind == "training_begin" ||
         kind == "run";
}

/// Events of one file.
class Stream {
 public:
  /// `known`: starts in the ledger, whose shifts hold in the metrics too.
  Stream(std::vector<KnownStart>& known, bool is_ledger) : known_(known), is_ledger_(is_ledger) {}

  void add(const nlohmann::json& record) {
    const double seconds = number_of(record, "time", -1);
    if (!(seconds > 0 && seconds < kLatestTime)) return;
    const auto raw = static_cast<int64_t>(seconds * kNanoseconds);
    const std::string kind = kind_of(record);
    if (is_begin(kind)) begin(raw);
    if (is_ledger_ && kind == "training_begin") known_.push_back({raw, shift_});
    last_ = std::max(last_, raw + shift_);
    events_.push_back({last_, &record, kind, is_ledger_});
  }
  const std::vector<RunEvent>& events() const { return events_; }

 private:
  void begin(int64_t raw) {
    if (!is_ledger_)
      for (const KnownStart& start : known_)
        if (std::abs(start.raw - raw) < kSameMoment) {
          shift_ = start.shift;
          return;
        }
    if (raw >= last_)
      shift_ = 0;
    else if (last_ - raw > shift_)  // but a start that is shifted stays as it is
      shift_ = last_ - raw;
  }

  std::vector<KnownStart>& known_;
  bool is_ledger_;
  std::vector<RunEvent> events_;
  int64_t shift_ = 0;
  int64_t last_ = kNever;
};

/// At the same time a start's record in the ledger comes first, and else the ledger's last.
std::vector<RunEvent> merged(const std::vector<RunEvent>& ledger,
                             const std::vector<RunEvent>& metrics) {
  std::vector<RunEvent> events;
  auto next = ledger.begin();
  for (const RunEvent& event : metrics) {
    const int64_t before = event.kind == "run" ? event.time : event.time - 1;
    while (next != ledger.end() && next->time <= before) events.push_back(*next++);
    events.push_back(event);
  }
  events.insert(events.end(), next, ledger.end());
  return events;
}

}  // namespace

std::vector<RunEvent> run_timeline(const std::vector<nlohmann::json>& ledger,
                                   const std::vector<nlohmann::json>& metrics) {
  std::vector<KnownStart> starts;
  Stream first(starts, true);
  for (const nlohmann::json& record : ledger) first.add(record);
  Stream second(starts, false);
  for (const nlohmann::json& record : metrics) second.add(record);
  return merged(first.events(), second.events());
}

double number_of(const nlohmann::json& record, const char* field, double otherwise) {
  const auto found = record.find(field);
  return found != record.end() && found->is_number() ? found->get<double>() : otherwise;
}

std::string text_of(const nlohmann::json& record, const char* field) {
  const auto found = record.find(field);
  return found != record.end() && found->is_string() ? found->get<std::string>() : "";
}

int64_t duration_of(const nlohmann::json& record, const char* field) {
  const double seconds = number_of(record, field);
  return seconds > 0 && seconds < kLatestTime ? static_cast<int64_t>(seconds * kNanoseconds) : 0;
}

}  // namespace phalanx
