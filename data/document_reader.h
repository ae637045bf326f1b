// Text files as a stream of chunks with documents marked, in memory that does not grow with them.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/enum_names.h"

namespace phalanx {

enum class InputFormat : uint8_t { automatic, text, jsonl };
enum class DocumentBoundary : uint8_t { file, blank_line, form_feed };

template <>
struct EnumNames<InputFormat> {
  static constexpr std::pair<InputFormat, std::string_view> table[] = {
      {InputFormat::automatic, "auto"}, {InputFormat::text, "text"}, {InputFormat::jsonl, "jsonl"}};
};
template <>
struct EnumNames<DocumentBoundary> {
  static constexpr std::pair<DocumentBoundary, std::string_view> table[] = {
      {DocumentBoundary::file, "file"},
      {DocumentBoundary::blank_line, "blank-line"},
      {DocumentBoundary::form_feed, "form-feed"}};
};

/// A piece of a document: the chunk's text from the last segment's end to this one's.
struct Segment {
  int64_t end = 0;
  bool ends_document = false;
};

/// Plain text: segments, without the boundaries between documents. JSONL: whole lines, no segments.
struct TextChunk {
  size_t file = 0;         // number of the input file
  int64_t first_line = 0;  // counted from 1
  bool is_jsonl = false;
  std::string text;
  std::vector<Segment> segments;
  int64_t source_bytes = 0;  // of the file, boundaries included
  int64_t bytes() const {
    return static_cast<int64_t>(text.capacity() + segments.capacity() * sizeof(Segment));
  }
};

/// Whether a tokenizer gives the same ids for `text` as for its parts before and after `at`
/// together: after a single line end between a visible character and a word (first choice), or
/// before a single space between two ASCII letters or digits. Holds for bytes and for the GPT-2,
/// cl100k and o200k split patterns, which never join across such a place; it does not hold for
/// added tokens that contain a space or line end between letters.
bool is_safe_cut_at_line(std::string_view text, size_t at);
bool is_safe_cut_at_space(std::string_view text, size_t at);

/// Reads files one after another. One thread at a time.
class DocumentReader {
 public:
  struct Options {
    InputFormat format = InputFormat::automatic;  // automatic: .jsonl and .json are JSONL
    DocumentBoundary boundary = DocumentBoundary::file;
    int64_t chunk_bytes = 1 << 20;
  };
  DocumentReader(std::vector<std::string> files, const Options& options);

  /// The next chunk; false after the last. Throws Error naming file and line.
  bool next(TextChunk& chunk);

 private:
  bool open_next();
  void read_block();
  size_t find_cut(size_t from) const;
  bool is_boundary(size_t at) const;
  void take(size_t bytes, TextChunk& chunk);
  void mark_blank_lines(std::string_view text, TextChunk& chunk);
  static void mark_form_feeds(std::string_view text, TextChunk& chunk);

  std::vector<std::string> files_;
  Options options_;
  size_t num_opened_ = 0;
  std::ifstream stream_;
  bool is_open_ = false;
  bool is_jsonl_ = false;
  bool at_end_ = false;  // of the open file
  int64_t line_ = 1;     // of the first byte of pending_
  std::string pending_;  // read, not yet handed out
};

}  // namespace phalanx
