// The out-of-line part of errors: one place that composes text and source location.
#include "kernels/base/error.h"

#include <fmt/format.h>

#include <string_view>

namespace phalanx::detail {

void append_value(std::string& text, bool value) {
  text += value ? "true" : "false";
}
void append_value(std::string& text, char value) {
  text += value;
}
void append_value(std::string& text, double value) {
  text += fmt::to_string(value);
}
void append_value(std::string& text, float value) {
  text += fmt::to_string(value);
}
void append_value(std::string& text, int64_t value) {
  text += fmt::to_string(value);
}
void append_value(std::string& text, uint64_t value) {
  text += fmt::to_string(value);
}

void throw_error(const std::string& text, const std::source_location& where) {
  const std::string_view file = where.file_name();
  const auto slash = file.find_last_of('/');
  const auto name = slash == std::string_view::npos ? file : file.substr(slash + 1);
  throw Error(fmt::format("{} [{}:{}]", text, name, where.line()));
}

}  // namespace phalanx::detail
