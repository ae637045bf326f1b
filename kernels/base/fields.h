// How a configuration struct names its fields, once, for the option parser, `--help`, the config
// file, the printed run header and the checkpoint's metadata.
//
// Each plain struct has, beside it, one overload
//
//   template <class Config, class Visitor>
//     requires ConfigOf<Config, DataConfig>
//   void visit_fields(Config& config, Visitor& visit) {
//     visit.group("Data");
//     visit("seq-length", config.seq_length, "positions per training sample");
//   }
//
// where the first argument is the option's name (Megatron's wherever it has one, without dashes in
// front), the second the field, the third its help text. A visitor is a class with `group` and a
// templated call operator. Field types: int64_t, double, bool, std::string,
// std::vector<std::string>, and enums with an EnumNames table. A bool field is a switch: `--name`
// sets it, `--no-name` clears.
#pragma once

#include <concepts>
#include <type_traits>

namespace phalanx {

/// `Config` is `Struct` or `const Struct`.
template <class Config, class Struct>
concept ConfigOf = std::same_as<std::remove_const_t<Config>, Struct>;

}  // namespace phalanx
