// Text to values and back. std::from_chars and fmt's shortest form, because both ignore the locale
// and a number written by one is read back to the same bits by the other.
#include "launch/option_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>

namespace phalanx {
namespace {

// Levenshtein distance, one row at a time.
int64_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<int64_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    int64_t diagonal = row[0]++;
    for (size_t j = 0; j < b.size(); ++j) {
      const int64_t replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

template <class Number>
bool parse_number(const std::string& text, Number& value, std::errc& error) {
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(begin, end, value);
  error = result.ec;
  return begin != end && result.ptr == end;
}

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

char unescape(char c) {
  switch (c) {
    case 'n':
      return '\n';
    case 'r':
      return '\r';
    case 't':
      return '\t';
    case '0':
      return '\0';
    default:
      return c;
  }
}

// Reads one word from the front of `text`, which starts with no blank.
std::string take_word(std::string_view& text) {
  std::string word;
  const bool quoted = text.front() == '"';
  size_t i = quoted ? 1 : 0;
  for (; i < text.size(); ++i) {
    if (quoted ? text[i] == '"' : is_blank(text[i])) break;
    if (quoted && text[i] == '\\' && i + 1 < text.size())
      word.push_back(unescape(text[++i]));
    else
      word.push_back(text[i]);
  }
  check_usage(!quoted || i < text.size(), "the quote in ", text, " does not close");
  text.remove_prefix(std::min(text.size(), i + (quoted ? 1 : 0)));
  return word;
}

}  // namespace

std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates) {
  const auto distance = [&](const std::string& name) { return edit_distance(word, name); };
  const auto best = std::ranges::min_element(candidates, {}, distance);
  return best == candidates.end() ? std::string() : *best;
}

void read_value(const std::string& text, int64_t& value) {
  using Limits = std::numeric_limits<int64_t>;
  int64_t number = 0;
  std::errc error{};
  const bool whole = parse_number(text, number, error);
  if (whole && error == std::errc()) {
    value = number;
    return;
  }
  double real = 0;
  if (parse_number(text, real, error) && std::isfinite(real)) {
    // 2^63 as a double; beyond it the nearest whole number that fits is the limit itself.
    constexpr double kTooLarge = 9223372036854775808.0;
    const int64_t nearest = real >= kTooLarge    ? Limits::max()
                            : real <= -kTooLarge ? Limits::min()
                                                 : std::llround(real);
    throw UsageError(
        fmt::format("'{}' is no 64-bit whole number; the nearest is {}", text, nearest));
  }
  throw UsageError(fmt::format("'{}' is no whole number; the present value is {}", text, value));
}

void read_value(const std::string& text, double& value) {
  double number = 0;
  std::errc error{};
  if (parse_number(text, number, error) && error == std::errc() && std::isfinite(number)) {
    value = number;
    return;
  }
  throw UsageError(fmt::format("'{}' is no finite number; the present value is {}", text, value));
}

void read_value(const std::string& text, bool& value) {
  if (text != "true" && text != "false")
    throw UsageError(fmt::format("'{}' is neither true nor false; the nearest is {}", text,
                                 nearest_word(text, {"true", "false"})));
  value = text == "true";
}

void read_value(const std::string& text, std::string& value) {
  value = text;
}

std::string value_text(int64_t value) {
  return fmt::format("{}", value);
}
std::string value_text(double value) {
  return fmt::format("{}", value);
}
std::string value_text(bool value) {
  return value ? "true" : "false";
}

std::string quote_word(const std::string& text) {
  const auto plain = [](char c) { return c > ' ' && c != '"' && c != '#' && c != ';' && c != 127; };
  if (!text.empty() && std::ranges::all_of(text, plain)) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    switch (c) {
      case '\n':
        quoted += "\\n";
        break;
      case '\r':
        quoted += "\\r";
        break;
      case '\t':
        quoted += "\\t";
        break;
      case '\0':
        quoted += "\\0";
        break;
      case '"':
      case '\\':
        quoted += '\\';
        [[fallthrough]];
      default:
        quoted += c;
    }
  }
  return quoted + '"';
}

std::vector<std::string> split_words(std::string_view text) {
  std::vector<std::string> words;
  while (true) {
    while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
    if (text.empty()) return words;
    words.push_back(take_word(text));
  }
}

}  // namespace phalanx
