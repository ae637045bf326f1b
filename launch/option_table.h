// OptionTable: the visitor that turns visited structs into options. There is no other list of
// options: parser, `--help`, config files and the printed configuration all read this table.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "launch/option_value.h"

namespace phalanx {

/// One field, seen as an option. Refers to the visited struct, which must outlive it.
struct Option {
  enum class Kind : uint8_t { toggle, single, list };
  std::string name = {};
  std::string group = {};
  std::string help = {};
  Kind kind = Kind::single;
  std::string placeholder = {};  // what stands for the value in help, e.g. "N" or "bf16|fp32"
  /// Sets the field; throws UsageError on a bad value. `toggle` and `single` take one text.
  std::function<void(const std::vector<std::string>&)> assign = {};
  /// The field's present value as config file text.
  std::function<std::string()> text = {};
};

class OptionTable {
 public:
  void group(std::string_view name) { group_ = name; }

  template <class T>
  void operator()(std::string_view name, T& field, std::string_view help) {
    Option option{.name = std::string(name), .group = group_, .help = std::string(help)};
    option.assign = [&field](const auto& values) { read_value(values.front(), field); };
    if constexpr (NamedEnum<T>) {
      option.placeholder = enum_choices<T>();
      option.text = [&field] { return std::string(enum_name(field)); };
    } else if constexpr (std::same_as<T, std::string>) {
      option.placeholder = "TEXT";
      option.text = [&field] { return field.empty() ? std::string() : quote_word(field); };
    } else {
      option.placeholder = std::same_as<T, double> ? "X" : "N";
      if (std::same_as<T, bool>) option.kind = Option::Kind::toggle;
      option.text = [&field] { return value_text(field); };
    }
    options_.push_back(std::move(option));
  }

  void operator()(std::string_view name, std::vector<std::string>& field, std::string_view help) {
    Option option{.name = std::string(name), .group = group_, .help = std::string(help)};
    option.kind = Option::Kind::list;
    option.placeholder = "TEXT...";
    option.assign = [&field](const auto& values) { field = values; };
    option.text = [&field] {
      std::string text;
      for (const auto& word : field) text.append(text.empty() ? "" : " ").append(quote_word(word));
      return text;
    };
    options_.push_back(std::move(option));
  }

  const std::vector<Option>& options() const { return options_; }
  /// The option called `name`, or nullptr.
  const Option* find(std::string_view name) const;
  std::vector<std::string> names() const;

 private:
  std::string group_;
  std::vector<Option> options_;
};

/// The options of `config`, any struct with visit_fields.
template <class Config>
OptionTable option_table(Config& config) {
  OptionTable table;
  visit_fields(config, table);
  return table;
}

}  // namespace phalanx
