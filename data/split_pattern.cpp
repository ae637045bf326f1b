// The PCRE2 calls behind SplitPattern.
#include "data/split_pattern.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/base/error.h"

namespace phalanx {

const std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string_view kCl100kPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

/// Spells out `\s` and `\S` as Unicode's White_Space: PCRE2's own `\s` also holds U+180E, which has
/// not been white space since Unicode 6.3 and is none in the library that defines these tokenizers.
std::string with_unicode_white_space(std::string_view pattern) {
  constexpr std::string_view kSpaces = R"(\x09-\x0D\x{85}\p{Z})";
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c != '\\' || i + 1 == pattern.size()) {
      in_class = c == '[' || (in_class && c != ']');
      out.push_back(c);
      continue;
    }
    const char escaped = pattern[++i];
    if (escaped == 's') {
      out.append(in_class ? "" : "[").append(kSpaces).append(in_class ? "" : "]");
    } else if (escaped == 'S' && !in_class) {
      out.append("[^").append(kSpaces).append("]");
    } else {
      out.append({c, escaped});
    }
  }
  return out;
}

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

/// Steps of backtracking allowed in one match. A pattern may walk back over a whole run of white
/// space, however long, so the limit grows with the text; it only stops exponential patterns.
uint32_t match_limit(size_t text_size) {
  constexpr size_t kBase = 10'000'000;
  return static_cast<uint32_t>(std::min<size_t>(kBase + 16 * text_size, UINT32_MAX));
}

}  // namespace

RegexScratch::RegexScratch()
    : stack_(pcre2_jit_stack_create(size_t{32} << 10, size_t{64} << 20, nullptr)),
      context_(pcre2_match_context_create(nullptr)),
      match_(pcre2_match_data_create(1, nullptr)) {
  check(stack_ && context_ && match_, "out of memory for the regular expression engine");
  pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
}

SplitPattern::SplitPattern(SplitStep step, const std::string& source) : step_(std::move(step)) {
  const std::string pattern =
      step_.literal ? step_.pattern : with_unicode_white_space(step_.pattern);
  const uint32_t options =
      step_.literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  size_t offset = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options,
                            &error, &offset, nullptr));
  check_usage(code_ != nullptr, source, ": the split pattern '", step_.pattern,
              "' does not compile: ", pcre2_message(error), " at byte ", offset, " of '", pattern,
              "'; correct it in that file");
  // Where machine code cannot be made (some hardened systems), pcre2_match interprets: slower,
  // equal.
  pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
}

SplitPattern::Match SplitPattern::find(std::string_view text, size_t from,
                                       RegexScratch& scratch) const {
  pcre2_set_match_limit(scratch.context_.get(), match_limit(text.size()));
  const int result =
      pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                  PCRE2_NO_UTF_CHECK, scratch.match_.get(), scratch.context_.get());
  if (result == PCRE2_ERROR_NOMATCH) return {text.size() + 1, text.size() + 1};
  check(result >= 0, "the split pattern '", step_.pattern, "' fails on a text of ", text.size(),
        " bytes: ", pcre2_message(result), " (code ", result, "); simplify the pattern");
  const size_t* bounds = pcre2_get_ovector_pointer(scratch.match_.get());
  check(bounds[0] >= from && bounds[1] >= bounds[0], "the split pattern '", step_.pattern,
        "' moves the start of its match; remove \\K from it");
  return {bounds[0], bounds[1]};
}

}  // namespace phalanx
