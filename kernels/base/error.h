// Errors as exceptions, in every build: `check(ok, "message ", value, ...)` and `fail(...)`.
// Messages carry the offending values and the fix; the caller's source location is added.
#pragma once

#include <fmt/format.h>

#include <source_location>
#include <stdexcept>
#include <string>

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
template <class... Args>
std::string concatenate(const Args&... args) {
  std::string text;
  (fmt::format_to(std::back_inserter(text), "{}", args), ...);
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
