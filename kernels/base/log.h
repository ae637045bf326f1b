// Log lines for people: to standard error, one write per line, so that ranks do not interleave.
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace phalanx {

/// Writes "phalanx: <text>\n" to standard error in one call.
void log_line(std::string_view text);

template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace phalanx
