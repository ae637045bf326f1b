// One option's value as text and back: whole numbers, numbers, switches, words, lists, enums.
// Readers throw UsageError that says what is wrong and the nearest valid value.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/enum_names.h"

namespace phalanx {

/// The candidate with the smallest edit distance to `word`; empty if there is none.
std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates);

void read_value(const std::string& text, int64_t& value);
void read_value(const std::string& text, double& value);
void read_value(const std::string& text, bool& value);
void read_value(const std::string& text, std::string& value);

/// Text that the reader above turns into the same value, to the bit.
std::string value_text(int64_t value);
std::string value_text(double value);
std::string value_text(bool value);

template <NamedEnum Enum>
std::vector<std::string> enum_words() {
  std::vector<std::string> words;
  for (const auto& [value, name] : EnumNames<Enum>::table) words.emplace_back(name);
  return words;
}

template <NamedEnum Enum>
void read_value(const std::string& text, Enum& value) {
  for (const auto& [candidate, name] : EnumNames<Enum>::table) {
    if (name != text) continue;
    value = candidate;
    return;
  }
  throw UsageError(fmt::format("'{}' is none of {}; the nearest is {}", text, enum_choices<Enum>(),
                               nearest_word(text, enum_words<Enum>())));
}

/// `text` in double quotes with \" \\ \n \r \t escaped, where a config file could not hold it bare.
std::string quote_word(const std::string& text);
/// The words of a line: separated by blanks, quoted ones unescaped. Throws UsageError at a quote
/// that does not close.
std::vector<std::string> split_words(std::string_view text);

}  // namespace phalanx
