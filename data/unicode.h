// The little Unicode that tokenizers need: UTF-8 validity, code points, character classes, NFC.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace phalanx {

struct CodePoint {
  char32_t value;
  size_t size;  // bytes in UTF-8
};

/// Bytes of the longest prefix that is valid UTF-8 (no surrogates, no overlong forms, <= U+10FFFF).
size_t valid_utf8_prefix(std::string_view text);

/// Of a non-empty, valid text.
CodePoint first_code_point(std::string_view text);
CodePoint last_code_point(std::string_view text);

void append_utf8(std::string& text, char32_t code_point);

/// Unicode's White_Space property.
bool is_white_space(char32_t code_point);

/// `\w` of Unicode regular expressions (UTS 18): letters, marks, decimal and letter numbers,
/// connectors, joiners.
bool is_word_character(char32_t code_point);

/// Normalization form C of valid UTF-8. Returns `text` itself where nothing can change, else a view
/// of `buffer`, which is overwritten.
std::string_view to_nfc(std::string_view text, std::string& buffer);

}  // namespace phalanx
