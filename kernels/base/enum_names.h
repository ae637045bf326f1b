// Enum values as the words users type and read: one table per enum, used by options and messages.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"

namespace phalanx {

/// Specialise with `static constexpr std::pair<Enum, std::string_view> table[] = {...}`.
template <class Enum>
struct EnumNames;

template <class Enum>
concept NamedEnum = requires {
  EnumNames<Enum>::table;
};

template <NamedEnum Enum>
constexpr std::string_view enum_name(Enum value) {
  for (const auto& [candidate, name] : EnumNames<Enum>::table)
    if (candidate == value) return name;
  return "?";
}

/// All names joined by '|', for help texts.
template <NamedEnum Enum>
std::string enum_choices() {
  std::string text;
  for (const auto& [value, name] : EnumNames<Enum>::table)
    text.append(text.empty() ? "" : "|").append(name);
  return text;
}

/// The value called `name`; throws UsageError that lists the choices.
template <NamedEnum Enum>
Enum parse_enum(std::string_view name) {
  for (const auto& [value, candidate] : EnumNames<Enum>::table)
    if (candidate == name) return value;
  throw UsageError(detail::concatenate("'", name, "' is none of ", enum_choices<Enum>()));
}

}  // namespace phalanx
