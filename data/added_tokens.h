// Added tokens: strings such as <|endoftext|> that are found in the text before it is split into
// words, and get one id each.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool single_word = false;  // only where no word character stands on either side
  bool lstrip = false;       // swallows white space on its left
  bool rstrip = false;       // swallows white space on its right
  bool normalized = true;    // is looked for in the normalized text
  bool special = false;
};

/// Finds the leftmost, then longest of a set of tokens, as the Hugging Face library does.
class AddedTokenMatcher {
 public:
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }

  /// Cuts `text` (valid UTF-8): calls visit_text(piece) and visit_token(id) in order.
  template <class VisitText, class VisitToken>
  void split(std::string_view text, const VisitText& visit_text,
             const VisitToken& visit_token) const;

 private:
  struct Range {  // of tokens_
    size_t begin = 0;
    size_t end = 0;
  };
  struct Match {
    const AddedToken* token = nullptr;  // null: none
    size_t begin = 0;
    size_t end = 0;
  };

  /// The longest token at the front of `text`, or null.
  const AddedToken* longest_prefix(std::string_view text) const;
  /// The next token at or behind `from` that its flags admit, without stripping.
  Match find(std::string_view text, size_t from) const;

  std::vector<AddedToken> tokens_;          // sorted by content
  std::array<Range, 256> by_first_byte_{};  // the tokens that start with a byte
};

/// Where the white space at the end of text[0, end) starts / at the front of text[begin, ...) ends.
size_t white_space_begin(std::string_view text, size_t end);
size_t white_space_end(std::string_view text, size_t begin);

template <class VisitText, class VisitToken>
void AddedTokenMatcher::split(std::string_view text, const VisitText& visit_text,
                              const VisitToken& visit_token) const {
  size_t done = 0;
  for (Match match = find(text, 0); match.token; match = find(text, match.end)) {
    const size_t begin = match.token->lstrip ? white_space_begin(text, match.begin) : match.begin;
    if (done < begin) visit_text(text.substr(done, begin - done));
    visit_token(match.token->id);
    done = match.token->rstrip ? white_space_end(text, match.end) : match.end;
  }
  if (done < text.size()) visit_text(text.substr(done));
}

}  // namespace phalanx
