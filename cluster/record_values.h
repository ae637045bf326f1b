// Values of records that other programs or versions wrote: what is missing or of another kind is
// taken for empty.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace phalanx {

using Record = nlohmann::json;
using Records = std::vector<nlohmann::json>;

inline std::string text_in(const Record& record, const char* name) {
  const auto found = record.find(name);
  return found != record.end() && found->is_string() ? found->get<std::string>() : std::string();
}

inline double number_in(const Record& record, const char* name, double otherwise = 0) {
  const auto found = record.find(name);
  return found != record.end() && found->is_number() ? found->get<double>() : otherwise;
}

inline int64_t integer_in(const Record& record, const char* name, int64_t otherwise = 0) {
  const auto found = record.find(name);
  return found != record.end() && found->is_number_integer() ? found->get<int64_t>() : otherwise;
}

inline std::vector<std::string> names_in(const Record& record, const char* name) {
  std::vector<std::string> names;
  const auto found = record.find(name);
  if (found == record.end() || !found->is_array()) return names;
  for (const Record& item : *found)
    if (item.is_string()) names.push_back(item.get<std::string>());
  return names;
}

inline bool is_event(const Record& record, const char* event) {
  return text_in(record, "event") == event;
}

}  // namespace phalanx
