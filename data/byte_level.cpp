// The byte-level alphabet as two tables made on first use.
#include "data/byte_level.h"

#include <algorithm>
#include <numeric>

#include "data/unicode.h"

namespace phalanx {
namespace {

constexpr char32_t kAlphabetEnd = 0x100 + 68;  // first code point behind the alphabet

struct Alphabet {
  std::array<char32_t, 256> character{};     // by byte
  std::array<int16_t, kAlphabetEnd> byte{};  // by code point, -1 outside the alphabet
  std::array<uint8_t, 256> in_order{};

  Alphabet() {
    byte.fill(-1);
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b != 173);
      const char32_t c = printable ? static_cast<char32_t>(b) : next++;
      character[static_cast<size_t>(b)] = c;
      byte[c] = static_cast<int16_t>(b);
    }
    std::iota(in_order.begin(), in_order.end(), uint8_t{0});
    std::ranges::sort(in_order, {}, [this](uint8_t b) { return character[b]; });
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

char32_t byte_level_character(uint8_t byte) {
  return alphabet().character[byte];
}

std::string to_byte_level(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) append_utf8(text, byte_level_character(static_cast<uint8_t>(byte)));
  return text;
}

std::optional<std::string> from_byte_level(std::string_view text) {
  if (valid_utf8_prefix(text) != text.size()) return std::nullopt;
  std::string bytes;
  while (!text.empty()) {
    const CodePoint first = first_code_point(text);
    if (first.value >= kAlphabetEnd || alphabet().byte[first.value] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(alphabet().byte[first.value]));
    text.remove_prefix(first.size);
  }
  return bytes;
}

const std::array<uint8_t, 256>& bytes_in_byte_level_order() {
  return alphabet().in_order;
}

}  // namespace phalanx
