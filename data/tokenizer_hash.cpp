// The only file that hashes tokenizers with xxHash.
#include "data/tokenizer_hash.h"

#include <fmt/format.h>

#include <xxhash.h>

#include <array>

#include "kernels/base/error.h"

namespace phalanx {

struct TokenizerHash::State {
  State() { check(xxh3 != nullptr, "no memory for a hash state"); }
  ~State() { XXH3_freeState(xxh3); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  XXH3_state_t* xxh3 = XXH3_createState();
};

TokenizerHash::TokenizerHash() : state_(std::make_unique<State>()) {
  XXH3_128bits_reset(state_->xxh3);
}

TokenizerHash::~TokenizerHash() = default;

void TokenizerHash::add(std::string_view text) {
  add(static_cast<int64_t>(text.size()));
  XXH3_128bits_update(state_->xxh3, text.data(), text.size());
}

void TokenizerHash::add(int64_t number) {
  std::array<unsigned char, 8> bytes{};  // little-endian on every machine
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<unsigned char>(static_cast<uint64_t>(number) >> (8 * i));
  XXH3_128bits_update(state_->xxh3, bytes.data(), bytes.size());
}

std::string TokenizerHash::hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_->xxh3);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace phalanx
