// Errors as exceptions, in every build: `check(ok, "message ", value, ...)` and `fail(...)`.
// Messages carry the offending values and the fix; the caller's source location is added.
#pragma once

#include <concepts>
#include <cstdint>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

namespace phalanx {

/// Anything that went wrong while running; `main` prints it with the rank and exits 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A mistake in options, configuration or an input file's name; `main` exits 2. The text stands
/// alone (no source location): it speaks to the user, not to a developer.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// A condition together with the place that states it, so that `check` can be a function.
struct Condition {
  // NOLINTNEXTLINE(google-explicit-constructor): implicit on purpose, see `check`.
  Condition(bool condition, std::source_location location = std::source_location::current())
      : ok(condition), where(location) {}
  bool ok;
  std::source_location where;
};

namespace detail {
// Not fmt's templates: every file includes this one, and CUDA's compiler cannot read fmt.
void append_value(std::string& text, bool value);
void append_value(std::string& text, char value);
void append_value(std::string& text, double value);
void append_value(std::string& text, float value);
void append_value(std::string& text, int64_t value);
void append_value(std::string& text, uint64_t value);

template <class Value>
void append(std::string& text, const Value& value) {
  if constexpr (std::convertible_to<const Value&, std::string_view>) {
    text += std::string_view(value);
  } else if constexpr (std::signed_integral<Value> && !std::same_as<Value, char>) {
    append_value(text, static_cast<int64_t>(value));
  } else if constexpr (std::unsigned_integral<Value> && !std::same_as<Value, bool>) {
    append_value(text, static_cast<uint64_t>(value));
  } else {
    append_value(text, value);
  }
}

template <class... Args>
std::string concatenate(const Args&... args) {
  std::string text;
  (append(text, args), ...);
  return text;
}
[[noreturn]] void throw_error(const std::string& text, const std::source_location& where);
}  // namespace detail

/// Throws `Error` with the concatenated arguments unless `condition` holds.
template <class... Args>
void check(Condition condition, const Args&... message) {
  if (!condition.ok) detail::throw_error(detail::concatenate(message...), condition.where);
}

/// Throws `Error` with the concatenated arguments.
template <class First, class... Args>
[[noreturn]] void fail(const First& first, const Args&... rest) {
  throw Error(detail::concatenate(first, rest...));
}

/// Throws `UsageError` with the concatenated arguments unless `ok` holds.
template <class... Args>
void check_usage(bool ok, const Args&... message) {
  if (!ok) throw UsageError(detail::concatenate(message...));
}

}  // namespace phalanx
