// Problems: what is wrong with a configuration, collected so that all of it is told at once.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace phalanx {

/// One line each: option, value, and what to use instead.
using Problems = std::vector<std::string>;

template <class... Args>
void report(Problems& problems, fmt::format_string<Args...> format, Args&&... args) {
  problems.push_back(fmt::format(format, std::forward<Args>(args)...));
}

/// Problem unless value >= least (NaN is one). Returns whether it held.
template <class Number>
bool at_least(Problems& problems, std::string_view option, Number value,
              std::type_identity_t<Number> least) {
  if (value >= least) return true;
  report(problems, "{} {} is too small; the smallest value is {}", option, value, least);
  return false;
}

inline void append(Problems& problems, Problems more) {
  std::ranges::move(more, std::back_inserter(problems));
}

}  // namespace phalanx
