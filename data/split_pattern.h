// Cuts text into words by a regular expression (PCRE2 with its just-in-time compiler).
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <memory>
#include <string>
#include <string_view>

namespace phalanx {

/// The pattern of GPT-2 and of the pre-tokenizer that Hugging Face calls ByteLevel.
extern const std::string_view kGpt2Pattern;
/// The pattern of cl100k and dolma2: case-blind contractions, at most three digits per word.
extern const std::string_view kCl100kPattern;

/// What the engine needs while it matches; one per thread, for any number of patterns.
class RegexScratch {
 public:
  RegexScratch();

 private:
  friend class SplitPattern;
  struct Free {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
    void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
  };
  std::unique_ptr<pcre2_jit_stack, Free> stack_;
  std::unique_ptr<pcre2_match_context, Free> context_;
  std::unique_ptr<pcre2_match_data, Free> match_;
};

/// One splitting step. Matches and the gaps between them become pieces of their own.
struct SplitStep {
  std::string pattern;
  bool literal = false;      // `pattern` is plain text and no regular expression
  bool keep_matches = true;  // false: matches are dropped from the text
  bool keep_gaps = true;     // false: what no match covers is dropped
};

class SplitPattern {
 public:
  /// Throws UsageError that names `source` if the pattern does not compile.
  SplitPattern(SplitStep step, const std::string& source);

  /// Calls visit(piece) for each non-empty piece of valid UTF-8 `text`, in order.
  template <class Visit>
  void split(std::string_view text, RegexScratch& scratch, const Visit& visit) const;

 private:
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  struct Match {
    size_t begin;
    size_t end;
  };

  /// The first match at or behind `from`; {text.size() + 1, ...} if there is none.
  Match find(std::string_view text, size_t from, RegexScratch& scratch) const;

  SplitStep step_;
  std::unique_ptr<pcre2_code, Free> code_;
};

template <class Visit>
void SplitPattern::split(std::string_view text, RegexScratch& scratch, const Visit& visit) const {
  size_t done = 0;  // end of the last match
  size_t from = 0;  // where to look for the next one
  while (from <= text.size()) {
    const Match match = find(text, from, scratch);
    if (match.begin > text.size()) break;
    if (match.begin > done && step_.keep_gaps) visit(text.substr(done, match.begin - done));
    if (match.end > match.begin && step_.keep_matches)
      visit(text.substr(match.begin, match.end - match.begin));
    done = match.end;
    from = match.end;
    if (match.end > match.begin) continue;
    do ++from;  // behind an empty match: go on at the next character
    while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xC0) == 0x80);
  }
  if (done < text.size() && step_.keep_gaps) visit(text.substr(done));
}

}  // namespace phalanx
