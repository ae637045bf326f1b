// Search for added tokens: a table on the first byte, then a range of sorted strings that narrows
// byte by byte. No automaton is needed: few positions pass the first two bytes.
#include "data/added_tokens.h"

#include <algorithm>

#include "data/unicode.h"

namespace phalanx {
namespace {

uint8_t byte_of(const AddedToken& token, size_t i) {
  return static_cast<uint8_t>(token.content[i]);
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  const bool word_before =
      begin > 0 && is_word_character(last_code_point(text.substr(0, begin)).value);
  const bool word_after =
      end < text.size() && is_word_character(first_code_point(text.substr(end)).value);
  return !word_before && !word_after;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::ranges::sort(tokens_, {}, &AddedToken::content);
  for (size_t i = 0; i < tokens_.size(); ++i) {
    Range& range = by_first_byte_[byte_of(tokens_[i], 0)];
    if (range.end == 0) range.begin = i;
    range.end = i + 1;
  }
}

const AddedToken* AddedTokenMatcher::longest_prefix(std::string_view text) const {
  auto [begin, end] = by_first_byte_[static_cast<uint8_t>(text[0])];
  const AddedToken* longest = nullptr;
  for (size_t length = 1; begin < end; ++length) {
    while (begin < end && tokens_[begin].content.size() == length) longest = &tokens_[begin++];
    if (begin == end || length == text.size()) break;
    const auto first = tokens_.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last = tokens_.begin() + static_cast<std::ptrdiff_t>(end);
    const auto same = std::ranges::equal_range(
        first, last, static_cast<uint8_t>(text[length]), {},
        [length](const AddedToken& token) { return byte_of(token, length); });
    begin = static_cast<size_t>(same.begin() - tokens_.begin());
    end = static_cast<size_t>(same.end() - tokens_.begin());
  }
  return longest;
}

AddedTokenMatcher::Match AddedTokenMatcher::find(std::string_view text, size_t from) const {
  while (from < text.size()) {
    if (by_first_byte_[static_cast<uint8_t>(text[from])].end == 0) {
      ++from;
      continue;
    }
    const AddedToken* token = longest_prefix(text.substr(from));
    const size_t end = from + (token ? token->content.size() : 1);
    if (token && (!token->single_word || stands_alone(text, from, end))) return {token, from, end};
    from = end;
  }
  return {};
}

size_t white_space_begin(std::string_view text, size_t end) {
  while (end > 0) {
    const CodePoint last = last_code_point(text.substr(0, end));
    if (!is_white_space(last.value)) break;
    end -= last.size;
  }
  return end;
}

size_t white_space_end(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    const CodePoint first = first_code_point(text.substr(begin));
    if (!is_white_space(first.value)) break;
    begin += first.size;
  }
  return begin;
}

}  // namespace phalanx
