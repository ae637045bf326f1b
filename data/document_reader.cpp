// Cutting files into chunks at places where neither documents nor tokens suffer.
#include "data/document_reader.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr int64_t kMaxLineBytes = int64_t{1} << 30;   // of JSONL
constexpr int64_t kMaxUncutBytes = int64_t{1} << 26;  // of plain text
constexpr size_t kNoCut = 0;

bool is_word(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/// White space in any of the ways Unicode has, as the last character of `text`.
bool ends_in_space(std::string_view text) {
  const auto last = static_cast<uint8_t>(text.back());
  if (last < 0x80)
    return last == ' ' || (last >= '\t' && last <= '\r') || (last >= 28 && last < 32);
  using namespace std::string_view_literals;
  for (const auto space : {"\xC2\x85"sv, "\xC2\xA0"sv, "\xE1\x9A\x80"sv, "\xE2\x80\xA8"sv,
                           "\xE2\x80\xA9"sv, "\xE2\x80\xAF"sv, "\xE2\x81\x9F"sv, "\xE3\x80\x80"sv})
    if (text.ends_with(space)) return true;
  // U+2000 to U+200A.
  return text.size() >= 3 && text.substr(text.size() - 3, 2) == "\xE2\x80" && last <= 0x8A;
}

/// A character that is surely no white space: a lead byte none of the Unicode spaces has.
bool starts_visible(char c) {
  const auto byte = static_cast<uint8_t>(c);
  return is_word(c) || (byte >= 0xC3 && byte != 0xE1 && byte != 0xE2 && byte != 0xE3);
}

bool is_blank(std::string_view line) {
  return std::all_of(line.begin(), line.end(),
                     [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; });
}

bool is_jsonl_name(const std::string& path) {
  return path.ends_with(".jsonl") || path.ends_with(".json");
}

}  // namespace

bool is_safe_cut_at_line(std::string_view text, size_t at) {
  return at >= 2 && at < text.size() && text[at - 1] == '\n' &&
         !ends_in_space(text.substr(0, at - 1)) && starts_visible(text[at]);
}

bool is_safe_cut_at_space(std::string_view text, size_t at) {
  return at >= 1 && at + 1 < text.size() && text[at] == ' ' && is_word(text[at - 1]) &&
         is_word(text[at + 1]);
}

DocumentReader::DocumentReader(std::vector<std::string> files, const Options& options)
    : files_(std::move(files)), options_(options) {
  check(options_.chunk_bytes >= 1, "chunks of ", options_.chunk_bytes, " bytes");
}

bool DocumentReader::open_next() {
  if (num_opened_ == files_.size()) return false;
  const std::string& path = files_[num_opened_++];
  stream_ = std::ifstream(path, std::ios::binary);
  check_usage(stream_.good(), "cannot open ", path);
  is_jsonl_ = options_.format == InputFormat::automatic ? is_jsonl_name(path)
                                                        : options_.format == InputFormat::jsonl;
  is_open_ = true;
  at_end_ = false;
  line_ = 1;
  return true;
}

void DocumentReader::read_block() {
  const size_t before = pending_.size();
  pending_.resize(before + static_cast<size_t>(options_.chunk_bytes));
  stream_.read(pending_.data() + before, options_.chunk_bytes);
  const auto count = static_cast<size_t>(stream_.gcount());
  check(!stream_.bad(), "cannot read ", files_[num_opened_ - 1]);
  pending_.resize(before + count);
  at_end_ = count < static_cast<size_t>(options_.chunk_bytes);
}

bool DocumentReader::next(TextChunk& chunk) {
  chunk = TextChunk{};
  if (!is_open_ && !open_next()) return false;
  size_t cut = kNoCut;
  while (!at_end_ && cut == kNoCut) {
    const size_t before = pending_.size();
    read_block();
    if (at_end_) break;
    // What was pending has no cut, except one that only the bytes after it can show.
    cut = find_cut(before - std::min<size_t>(before, 2));
    const auto held = static_cast<int64_t>(pending_.size());
    check(cut != kNoCut || held < (is_jsonl_ ? kMaxLineBytes : kMaxUncutBytes),
          files_[num_opened_ - 1], ":", line_, ": ", held,
          is_jsonl_ ? " bytes without a line end; is it JSONL (one document per line)?"
                    : " bytes without a line end or space to cut at; is it text?");
  }
  chunk.file = num_opened_ - 1;
  chunk.first_line = line_;
  chunk.is_jsonl = is_jsonl_;
  take(at_end_ ? pending_.size() : cut, chunk);
  if (at_end_) {
    is_open_ = false;
    if (!is_jsonl_)
      chunk.segments.push_back(
          {.end = static_cast<int64_t>(chunk.text.size()), .ends_document = true});
  }
  return true;
}

/// A boundary between documents right before `at`.
bool DocumentReader::is_boundary(size_t at) const {
  const std::string_view text = pending_;
  if (is_jsonl_) return text[at - 1] == '\n';
  switch (options_.boundary) {
    case DocumentBoundary::file:
      return false;
    case DocumentBoundary::form_feed:
      return text[at - 1] == '\f';
    case DocumentBoundary::blank_line: {
      if (text[at - 1] != '\n' || at < 2) return false;
      const size_t line_end = text.find_last_of('\n', at - 2);
      return line_end != std::string_view::npos &&
             is_blank(text.substr(line_end + 1, at - line_end - 1));
    }
  }
  return false;
}

size_t DocumentReader::find_cut(size_t from) const {
  for (size_t at = pending_.size(); at > from; --at)
    if (is_boundary(at) || (!is_jsonl_ && is_safe_cut_at_line(pending_, at))) return at;
  if (is_jsonl_) return kNoCut;
  for (size_t at = pending_.size(); at > from; --at)
    if (is_safe_cut_at_space(pending_, at)) return at;
  return kNoCut;
}

/// Hands out the first `bytes` of what is pending.
void DocumentReader::take(size_t bytes, TextChunk& chunk) {
  const std::string_view text = std::string_view(pending_).substr(0, bytes);
  chunk.source_bytes = static_cast<int64_t>(bytes);
  line_ += std::count(text.begin(), text.end(), '\n');
  if (!is_jsonl_ && options_.boundary == DocumentBoundary::blank_line) {
    mark_blank_lines(text, chunk);
  } else if (!is_jsonl_ && options_.boundary == DocumentBoundary::form_feed) {
    mark_form_feeds(text, chunk);
  } else {
    chunk.text = text;
  }
  if (!is_jsonl_) chunk.segments.push_back({.end = static_cast<int64_t>(chunk.text.size())});
  pending_.erase(0, bytes);
}

void DocumentReader::mark_blank_lines(std::string_view text, TextChunk& chunk) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
    const std::string_view line = text.substr(begin, end - begin);
    if (is_blank(line)) {
      chunk.segments.push_back(
          {.end = static_cast<int64_t>(chunk.text.size()), .ends_document = true});
    } else {
      chunk.text += line;
    }
    begin = end;
  }
}

void DocumentReader::mark_form_feeds(std::string_view text, TextChunk& chunk) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\f', begin), text.size());
    chunk.text += text.substr(begin, end - begin);
    if (end < text.size())
      chunk.segments.push_back(
          {.end = static_cast<int64_t>(chunk.text.size()), .ends_document = true});
    begin = end + 1;
  }
}

}  // namespace phalanx
