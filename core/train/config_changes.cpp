// config.ini as lines of "name = value  # default: ...", under [sections].
#include "core/train/config_changes.h"

#include <algorithm>
#include <set>
#include <sstream>
#include <string_view>

namespace phalanx {
namespace {

struct IniOption {
  std::string section;
  std::string name;
  std::string value;
  bool is_default;
};

std::vector<IniOption> read_options(const std::string& text) {
  constexpr std::string_view kComment = "  # default: ";
  std::vector<IniOption> options;
  std::string section;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with('[')) section = line.substr(1, line.find(']') - 1);
    const auto equals = line.find(" =");
    if (line.starts_with('#') || line.starts_with('[') || equals == std::string::npos) continue;
    // Cut off first: an empty value is followed by it at once.
    const auto comment = line.rfind(kComment);
    const std::string name = line.substr(0, equals);
    line.resize(std::min(line.size(), comment));
    const std::string value = line.substr(std::min(line.size(), equals + 3));
    options.push_back({section, name, value, comment == std::string::npos});
  }
  return options;
}

ConfigChange::Kind kind_of(const IniOption& option) {
  using Kind = ConfigChange::Kind;
  static const std::set<std::string_view> identity{"Model",
                                                   "Norm placement",
                                                   "PHD-Transformer",
                                                   "Sparse attention (LongGen)",
                                                   "Mixture of experts",
                                                   "Data",
                                                   "Tokenizer"};
  if (identity.contains(option.section) || option.name == "seed") return Kind::identity;
  if (option.section == "Initialisation and loss" || option.name == "precision")
    return Kind::numeric;
  return Kind::harmless;
}

}  // namespace

std::vector<ConfigChange> config_changes(const std::string& before, const std::string& now) {
  std::vector<IniOption> old = read_options(before);
  std::vector<ConfigChange> changes;
  for (const IniOption& option : read_options(now)) {
    const auto place = std::ranges::find(old, option.name, &IniOption::name);
    const std::string was = place == old.end() ? "" : place->value;
    if (place != old.end()) old.erase(place);
    if (was != option.value) changes.push_back({option.name, was, option.value, kind_of(option)});
  }
  for (const IniOption& option : old)
    if (!option.value.empty()) changes.push_back({option.name, option.value, "", kind_of(option)});
  return changes;
}

std::string changed_from_default(const std::string& config_ini, const std::string& section) {
  std::string text;
  for (const IniOption& option : read_options(config_ini))
    if (option.section == section && !option.is_default)
      text.append(text.empty() ? "" : ", ").append(option.name + " " + option.value);
  return text;
}

}  // namespace phalanx
