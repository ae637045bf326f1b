// UTF-8 by hand, character properties and normalization tables from utf8proc.
#include "data/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

uint8_t byte_at(std::string_view text, size_t i) {
  return static_cast<uint8_t>(text[i]);
}

/// Size of the code point at the front of `text`, 0 if there is none. Table 3-7 of the Unicode
/// standard: only the second byte's range depends on the first byte.
size_t valid_code_point_size(std::string_view text) {
  const uint8_t lead = byte_at(text, 0);
  if (lead < 0x80) return 1;
  const size_t size = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (size == 0 || text.size() < size) return 0;
  const uint8_t lowest = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t highest = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte_at(text, 1) < lowest || byte_at(text, 1) > highest) return 0;
  for (size_t i = 2; i < size; ++i)
    if ((byte_at(text, i) & 0xC0) != 0x80) return 0;
  return size;
}

bool is_continuation(char byte) {
  return (static_cast<uint8_t>(byte) & 0xC0) == 0x80;
}

/// First byte of a code point >= U+0300. All code points below are starters that are their own NFC
/// and never join the character before them.
bool may_change_in_nfc(char byte) {
  return static_cast<uint8_t>(byte) >= 0xCC;
}

/// Full canonical decomposition in canonical order. Sorted here and not by utf8proc because its
/// bubble sort takes quadratic time on long runs of combining marks.
std::vector<utf8proc_int32_t> decompose(std::string_view text) {
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  while (!text.empty()) {
    const CodePoint c = first_code_point(text);
    std::array<utf8proc_int32_t, 8> parts{};  // the longest canonical decomposition has 4
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.value), parts.data(),
                                               parts.size(), UTF8PROC_DECOMPOSE, &boundary);
    check(count >= 0 && count <= 8, "utf8proc cannot decompose U+", static_cast<uint32_t>(c.value));
    points.insert(points.end(), parts.begin(), parts.begin() + count);
    text.remove_prefix(c.size);
  }
  const auto combining_class = [](utf8proc_int32_t point) {
    return utf8proc_get_property(point)->combining_class;
  };
  const auto is_mark = [&](utf8proc_int32_t point) { return combining_class(point) != 0; };
  for (auto begin = points.begin(); begin != points.end();) {
    begin = std::find_if(begin, points.end(), is_mark);
    const auto end = std::find_if_not(begin, points.end(), is_mark);
    std::stable_sort(begin, end, [&](utf8proc_int32_t a, utf8proc_int32_t b) {
      return combining_class(a) < combining_class(b);
    });
    begin = end;
  }
  return points;
}

void append_nfc(std::string& out, std::string_view text) {
  std::vector<utf8proc_int32_t> points = decompose(text);
  const auto count =
      utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  check(count >= 0, "utf8proc cannot compose a text of ", text.size(), " bytes");
  for (const auto point : std::span(points).first(static_cast<size_t>(count)))
    append_utf8(out, static_cast<char32_t>(point));
}

}  // namespace

size_t valid_utf8_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t eight = 0;  // eight bytes of ASCII at a time: most text is
    if (at + 8 <= text.size()) std::memcpy(&eight, text.data() + at, 8);
    if (at + 8 <= text.size() && (eight & 0x8080808080808080U) == 0) {
      at += 8;
      continue;
    }
    const size_t size = valid_code_point_size(text.substr(at));
    if (size == 0) break;
    at += size;
  }
  return at;
}

CodePoint first_code_point(std::string_view text) {
  const uint8_t lead = byte_at(text, 0);
  if (lead < 0x80) return {lead, 1};
  const size_t size = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t value = lead & (0xFFU >> (size + 1));
  for (size_t i = 1; i < size; ++i) value = value << 6 | (byte_at(text, i) & 0x3FU);
  return {value, size};
}

CodePoint last_code_point(std::string_view text) {
  size_t at = text.size() - 1;
  while (is_continuation(text[at])) --at;
  return first_code_point(text.substr(at));
}

void append_utf8(std::string& text, char32_t code_point) {
  const auto put = [&text](uint32_t byte) { text.push_back(static_cast<char>(byte)); };
  const auto c = static_cast<uint32_t>(code_point);
  if (c < 0x80) return put(c);
  if (c < 0x800) {
    put(0xC0 | c >> 6);
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
  }
  put(0x80 | (c & 0x3F));
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word_character(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:  // the joiners, and the letters in circles and squares that are Alphabetic
      return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
             (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
             (c >= 0x1F170 && c <= 0x1F189);
  }
}

std::string_view to_nfc(std::string_view text, std::string& buffer) {
  if (std::ranges::none_of(text, may_change_in_nfc)) return text;
  buffer.clear();
  size_t copied = 0;
  while (copied < text.size()) {
    const auto rest = text.substr(copied);
    const auto first =
        static_cast<size_t>(std::ranges::find_if(rest, may_change_in_nfc) - rest.begin());
    // A mark may join the one character before it.
    const size_t begin = first == 0 || first == rest.size()
                             ? first
                             : first - last_code_point(rest.substr(0, first)).size;
    buffer.append(rest.substr(0, begin));
    size_t end = first;
    while (end < rest.size() && (may_change_in_nfc(rest[end]) || is_continuation(rest[end]))) ++end;
    append_nfc(buffer, rest.substr(begin, end - begin));
    copied += end;
  }
  return buffer;
}

}  // namespace phalanx
