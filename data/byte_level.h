// GPT-2's byte-level alphabet: each of the 256 bytes written as one printable character, the form
// in which byte-level vocabularies are stored (a space is "Ġ"). Bytes 33-126, 161-172 and 174-255
// are the characters with their own numbers, the other 68 bytes in order are U+0100, U+0101, ...
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace phalanx {

/// The character that stands for `byte`, as a code point.
char32_t byte_level_character(uint8_t byte);

/// `bytes` in the byte-level alphabet, UTF-8.
std::string to_byte_level(std::string_view bytes);

/// The bytes `text` stands for; nothing if a character is outside the alphabet or `text` no UTF-8.
std::optional<std::string> from_byte_level(std::string_view text);

/// All bytes ordered by their characters: the order in which GPT-2 numbers its first 256 tokens.
const std::array<uint8_t, 256>& bytes_in_byte_level_order();

}  // namespace phalanx
