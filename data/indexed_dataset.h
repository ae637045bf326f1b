// Token datasets on disk in Megatron's format: PREFIX.bin holds the tokens, PREFIX.idx says where
// each sequence starts. This is the reading side; indexed_dataset_writer.h writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "data/file_io.h"

namespace phalanx {

/// Integer types a .bin may hold, with Megatron's codes (its floating types are no tokens).
enum class TokenType : uint8_t { u8 = 1, i8 = 2, i16 = 3, i32 = 4, i64 = 5, u16 = 8 };

int64_t token_bytes(TokenType type);
/// Megatron's name: "uint16", "int32", ...
std::string_view token_type_name(TokenType type);

/// Layout of the .idx header: magic, u64 version, u8 type code, u64 sequences, u64 document marks.
inline constexpr std::string_view kIndexMagic{"MMIDIDX\0\0", 9};
inline constexpr uint64_t kIndexVersion = 1;
inline constexpr int64_t kIndexHeaderBytes = 34;

/// A checked view of an .idx file in memory: after construction every accessor is safe, and every
/// sequence lies inside the .bin. Owns nothing. Any thread.
class IndexView {
 public:
  /// Reads `index`, the whole .idx file, for a .bin of `bin_bytes`. Throws Error that starts with
  /// `name` and says what is wrong and where.
  IndexView(std::span<const std::byte> index, int64_t bin_bytes, std::string_view name);

  TokenType token_type() const { return type_; }
  int64_t num_sequences() const { return num_sequences_; }
  int64_t num_documents() const { return num_marks_ - 1; }
  /// Sum of all lengths.
  int64_t num_tokens() const { return num_tokens_; }
  /// Tokens of sequence `i`; `i` must be in range.
  int32_t length(int64_t i) const { return load<int32_t>(kIndexHeaderBytes + 4 * i); }
  /// Where sequence `i` starts in the .bin, in bytes.
  int64_t byte_offset(int64_t i) const { return load<int64_t>(offsets_at_ + 8 * i); }
  /// First sequence of document `i`; i == num_documents() gives num_sequences().
  int64_t document_begin(int64_t i) const { return load<int64_t>(marks_at_ + 8 * i); }

 private:
  // By memcpy, because the arrays start at offset 34 and so are not aligned.
  template <class T>
  T load(int64_t at) const {
    T value;
    __builtin_memcpy(&value, index_.data() + at, sizeof(T));
    return value;
  }
  void parse_header(std::string_view name);
  void check_sequences(int64_t bin_bytes, std::string_view name);
  void check_documents(std::string_view name) const;

  std::span<const std::byte> index_;
  TokenType type_ = TokenType::u16;
  int64_t num_sequences_ = 0;
  int64_t num_marks_ = 0;
  int64_t num_tokens_ = 0;
  int64_t offsets_at_ = 0;
  int64_t marks_at_ = 0;
};

/// One dataset, mapped. Reading is thread-safe.
class IndexedDataset {
 public:
  /// Opens PREFIX.idx and PREFIX.bin and checks them against each other.
  explicit IndexedDataset(std::string prefix);

  const std::string& prefix() const { return prefix_; }
  const IndexView& index() const { return index_; }
  /// Tokens [offset, offset + out.size()) of `sequence`, widened; throws when they are not all
  /// inside the sequence or one does not fit 32 bits.
  void read(int64_t sequence, int64_t offset, std::span<int32_t> out) const;

 private:
  std::string prefix_;
  MappedFile index_file_;
  MappedFile bin_file_;
  IndexView index_;
};

}  // namespace phalanx
