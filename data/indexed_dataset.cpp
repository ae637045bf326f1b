// Reading and checking of .idx and .bin files.
#include "data/indexed_dataset.h"

#include <cstring>
#include <limits>

#include "kernels/base/error.h"
#include "kernels/base/flight_recorder.h"

namespace phalanx {
namespace {

bool is_token_type(uint8_t code) {
  return (code >= 1 && code <= 5) || code == 8;
}

/// Copies stored tokens to 32 bits; `bytes` need not be aligned.
template <class Stored>
void widen(const std::byte* bytes, std::span<int32_t> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    Stored value;
    std::memcpy(&value, bytes + i * sizeof(Stored), sizeof(Stored));
    if constexpr (sizeof(Stored) == 8) {
      check(value >= std::numeric_limits<int32_t>::min() &&
                value <= std::numeric_limits<int32_t>::max(),
            "token id ", value, " does not fit 32 bits");
    }
    out[i] = static_cast<int32_t>(value);
  }
}

}  // namespace

int64_t token_bytes(TokenType type) {
  switch (type) {
    case TokenType::u8:
    case TokenType::i8:
      return 1;
    case TokenType::i16:
    case TokenType::u16:
      return 2;
    case TokenType::i32:
      return 4;
    case TokenType::i64:
      return 8;
  }
  return 0;
}

std::string_view token_type_name(TokenType type) {
  switch (type) {
    case TokenType::u8:
      return "uint8";
    case TokenType::i8:
      return "int8";
    case TokenType::i16:
      return "int16";
    case TokenType::u16:
      return "uint16";
    case TokenType::i32:
      return "int32";
    case TokenType::i64:
      return "int64";
  }
  return "?";
}

IndexView::IndexView(std::span<const std::byte> index, int64_t bin_bytes, std::string_view name)
    : index_(index) {
  const FlightRange reading(flight_entry(FlightKind::file, "reading", name));
  parse_header(name);
  check_sequences(bin_bytes, name);
  check_documents(name);
}

void IndexView::parse_header(std::string_view name) {
  const auto bytes = static_cast<int64_t>(index_.size());
  check(bytes >= kIndexHeaderBytes, name, ": ", bytes, " bytes are too few for an index (",
        kIndexHeaderBytes, " of header); the file is cut or is no dataset index");
  check(std::memcmp(index_.data(), kIndexMagic.data(), kIndexMagic.size()) == 0, name,
        ": does not start with MMIDIDX, so it is no dataset index");
  const auto version = load<uint64_t>(9);
  check(version == kIndexVersion, name, ": version ", version, ", only 1 is known");
  const auto code = load<uint8_t>(17);
  check(is_token_type(code), name, ": type code ", int{code},
        " is no integer type (1 to 5 or 8), so the file holds no tokens");
  type_ = static_cast<TokenType>(code);

  // Both counts are compared with the file's size before they are multiplied: no overflow.
  const auto sequences = load<uint64_t>(18);
  const auto marks = load<uint64_t>(26);
  const auto room = static_cast<uint64_t>(bytes - kIndexHeaderBytes);
  check(sequences <= room / 12 && marks <= room / 8 && 12 * sequences + 8 * marks <= room, name,
        ": ", sequences, " sequences and ", marks, " document marks need more than its ", bytes,
        " bytes; the file is cut");
  const uint64_t rest = room - 12 * sequences - 8 * marks;
  check(rest == 0 || rest == sequences, name, ": ", rest, " bytes too many at the end");
  check(marks >= 1, name, ": no document marks; even an empty dataset has one");
  num_sequences_ = static_cast<int64_t>(sequences);
  num_marks_ = static_cast<int64_t>(marks);
  offsets_at_ = kIndexHeaderBytes + 4 * num_sequences_;
  marks_at_ = kIndexHeaderBytes + 12 * num_sequences_;
}

void IndexView::check_sequences(int64_t bin_bytes, std::string_view name) {
  const int64_t item = token_bytes(type_);
  const int64_t capacity = bin_bytes / item;
  for (int64_t i = 0; i < num_sequences_; ++i) {
    flight_progress_of(static_cast<uint64_t>(i));
    const int64_t tokens = length(i);
    const int64_t begin = byte_offset(i);
    check(tokens >= 0, name, ": sequence ", i, " has length ", tokens);
    const bool inside = begin >= 0 && begin <= bin_bytes && tokens <= capacity &&
                        begin <= bin_bytes - tokens * item;
    check(inside, name, ": sequence ", i, " (", tokens, " tokens at byte ", begin,
          ") does not lie in the .bin of ", bin_bytes, " bytes; the .bin is cut or another one");
    // Sequences may overlap, so their sum may pass what one .bin could hold; keep it in range.
    check(num_tokens_ <= std::numeric_limits<int64_t>::max() - tokens, name, ": too many tokens");
    num_tokens_ += tokens;
  }
}

void IndexView::check_documents(std::string_view name) const {
  check(document_begin(0) == 0, name, ": the first document begins at sequence ", document_begin(0),
        ", not 0");
  for (int64_t i = 1; i < num_marks_; ++i) {
    check(document_begin(i) >= document_begin(i - 1), name,
          ": document marks are not sorted: ", document_begin(i - 1), " before ", document_begin(i),
          " at ", i);
  }
  check(document_begin(num_marks_ - 1) == num_sequences_, name, ": the documents end at sequence ",
        document_begin(num_marks_ - 1), ", but there are ", num_sequences_);
}

IndexedDataset::IndexedDataset(std::string prefix)
    : prefix_(std::move(prefix)),
      index_file_(prefix_ + ".idx", MappedFile::Access::read),
      bin_file_(prefix_ + ".bin", MappedFile::Access::read),
      index_(index_file_.bytes(), static_cast<int64_t>(bin_file_.bytes().size()),
             prefix_ + ".idx") {
  bin_file_.expect_random_access();
}

void IndexedDataset::read(int64_t sequence, int64_t offset, std::span<int32_t> out) const {
  check(sequence >= 0 && sequence < index_.num_sequences(), prefix_, " has ",
        index_.num_sequences(), " sequences, none with number ", sequence);
  const auto count = static_cast<int64_t>(out.size());
  check(offset >= 0 && count <= index_.length(sequence) - offset, prefix_, ": tokens ", offset,
        " to ", offset + count, " of sequence ", sequence, ", which has ", index_.length(sequence));
  const std::byte* from = bin_file_.bytes().data() + index_.byte_offset(sequence) +
                          offset * token_bytes(index_.token_type());
  switch (index_.token_type()) {
    case TokenType::u8:
      return widen<uint8_t>(from, out);
    case TokenType::i8:
      return widen<int8_t>(from, out);
    case TokenType::i16:
      return widen<int16_t>(from, out);
    case TokenType::u16:
      return widen<uint16_t>(from, out);
    case TokenType::i32:
      return widen<int32_t>(from, out);
    case TokenType::i64:
      return widen<int64_t>(from, out);
  }
}

}  // namespace phalanx
