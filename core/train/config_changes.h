// What a configuration says other than the one a checkpoint was written with.
#pragma once

#include <string>
#include <vector>

namespace phalanx {

/// An option that differs.
struct ConfigChange {
  /// What the change means to a run that goes on.
  enum class Kind : uint8_t {
    harmless,  // where and how fast it runs, what it logs, how it goes on learning
    numeric,   // the next step gives other numbers: precision, loss terms
    identity,  // another model or other data: to be allowed by name
  };
  std::string name;
  std::string before;
  std::string now;
  Kind kind = Kind::harmless;
};

/// Compares two config.ini texts option by option, in the order of `now`. An option that one of
/// them lacks has the value ""; one that only `now` has, at its default, is no change.
std::vector<ConfigChange> config_changes(const std::string& before, const std::string& now);

/// The options of `section` that are not at their defaults: "tensor-model-parallel-size 2, ...".
std::string changed_from_default(const std::string& config_ini, const std::string& section);

}  // namespace phalanx
