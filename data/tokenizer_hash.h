// XXH3-128 over a sequence of strings and numbers, so that two tokenizers can be told apart.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace phalanx {

class TokenizerHash {
 public:
  TokenizerHash();
  ~TokenizerHash();

  /// Lengths are hashed too, so that ("ab", "c") and ("a", "bc") differ.
  void add(std::string_view text);
  void add(int64_t number);
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace phalanx
