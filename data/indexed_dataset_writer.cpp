// The streaming dataset writer.
#include "data/indexed_dataset_writer.h"

#include <cstdio>
#include <limits>
#include <vector>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr int64_t kMaxTokensOfU16 = 65500;  // Megatron's threshold, not 65536

void append_file(FileWriter& to, const std::string& path) {
  const MappedFile file(path, MappedFile::Access::read);
  const auto bytes = file.bytes();
  to.write(bytes.data(), static_cast<int64_t>(bytes.size()));
}

/// Appends the byte offset of each sequence, the running sum of the lengths in `path`.
void append_offsets(FileWriter& to, const std::string& path, int64_t item_bytes) {
  const MappedFile file(path, MappedFile::Access::read);
  const auto bytes = file.bytes();
  int64_t offset = 0;
  for (size_t at = 0; at < bytes.size(); at += sizeof(int32_t)) {
    int32_t length = 0;
    __builtin_memcpy(&length, bytes.data() + at, sizeof(length));
    to.write_value(offset);
    offset += length * item_bytes;
  }
}

}  // namespace

TokenType best_token_type(int64_t vocab_size) {
  return vocab_size < kMaxTokensOfU16 ? TokenType::u16 : TokenType::i32;
}

IndexedDatasetWriter::IndexedDatasetWriter(std::string prefix, int64_t vocab_size)
    : prefix_(std::move(prefix)),
      type_(best_token_type(vocab_size)),
      vocab_size_(vocab_size),
      bin_file_(prefix_ + ".bin"),
      index_file_(prefix_ + ".idx"),
      lengths_file_(prefix_ + ".lengths"),
      documents_file_(prefix_ + ".documents"),
      bin_(bin_file_.path()),
      lengths_(lengths_file_.path()),
      documents_(documents_file_.path()) {
  check(vocab_size >= 1, "a dataset needs a vocabulary, not ", vocab_size, " ids");
}

void IndexedDatasetWriter::append(std::span<const int32_t> tokens) {
  for (const int32_t id : tokens) {
    check(id >= 0 && id < vocab_size_, prefix_, ": token id ", id, " in sequence ", num_sequences_,
          " is outside the vocabulary of ", vocab_size_);
    if (type_ == TokenType::u16) {
      bin_.write_value(static_cast<uint16_t>(id));
    } else {
      bin_.write_value(id);
    }
  }
  open_tokens_ += static_cast<int64_t>(tokens.size());
  check(open_tokens_ <= std::numeric_limits<int32_t>::max(), prefix_, ": sequence ", num_sequences_,
        " is longer than 2^31 - 1 tokens; split the document");
}

void IndexedDatasetWriter::end_sequence() {
  lengths_.write_value(static_cast<int32_t>(open_tokens_));
  num_tokens_ += open_tokens_;
  open_tokens_ = 0;
  ++num_sequences_;
}

void IndexedDatasetWriter::end_document() {
  documents_.write_value(num_sequences_);
  ++num_documents_;
}

void IndexedDatasetWriter::finish() {
  check(open_tokens_ == 0, prefix_, ": the last sequence was not ended");
  bin_.flush();
  lengths_.flush();
  documents_.flush();
  write_index();
  bin_file_.sync();
  index_file_.sync();
}

void IndexedDatasetWriter::write_index() {
  FileWriter index(index_file_.path());
  index.write(kIndexMagic.data(), static_cast<int64_t>(kIndexMagic.size()));
  index.write_value(kIndexVersion);
  index.write_value(static_cast<uint8_t>(type_));
  index.write_value(num_sequences_);
  index.write_value(num_documents_ + 1);
  append_file(index, lengths_file_.path());
  append_offsets(index, lengths_file_.path(), token_bytes(type_));
  index.write_value(int64_t{0});
  append_file(index, documents_file_.path());
  index.flush();
}

void IndexedDatasetWriter::publish() {
  std::remove((prefix_ + ".idx").c_str());  // may not exist
  bin_file_.publish();
  try {
    index_file_.publish();
  } catch (...) {
    std::remove((prefix_ + ".bin").c_str());
    throw;
  }
}

}  // namespace phalanx
