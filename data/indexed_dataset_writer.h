// Streaming writer of PREFIX.bin and PREFIX.idx, byte for byte what Megatron's builder writes.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "data/file_io.h"
#include "data/indexed_dataset.h"

namespace phalanx {

/// Megatron's choice: u16 below 65,500 token ids, else i32.
TokenType best_token_type(int64_t vocab_size);

/// Memory use does not grow with the dataset: lengths and document marks are spilled to temporary
/// files until the index is composed. Nothing but temporary files exists before `publish`, and they
/// vanish with this object. One thread at a time.
class IndexedDatasetWriter {
 public:
  /// Ids from 0 to `vocab_size` - 1 are accepted.
  IndexedDatasetWriter(std::string prefix, int64_t vocab_size);

  /// Adds tokens to the sequence being written; throws on an id outside the vocabulary.
  void append(std::span<const int32_t> tokens);
  /// Ends the sequence; it may be empty.
  void end_sequence();
  /// Ends the document: the sequences since the last call belong to it.
  void end_document();

  TokenType token_type() const { return type_; }
  int64_t num_sequences() const { return num_sequences_; }
  int64_t num_documents() const { return num_documents_; }
  int64_t num_tokens() const { return num_tokens_; }
  /// Tokens in the sequence being written.
  int64_t open_tokens() const { return open_tokens_; }

  /// Completes all files under their temporary names and makes them durable.
  void finish();
  /// After `finish`: gives the files their names, the .idx last. An older dataset of the same name
  /// loses its .idx first, so that at no time an .idx stands beside another's .bin.
  void publish();

 private:
  void write_index();

  std::string prefix_;
  TokenType type_;
  int64_t vocab_size_;
  TemporaryFile bin_file_;
  TemporaryFile index_file_;
  TemporaryFile lengths_file_;    // i32 per sequence
  TemporaryFile documents_file_;  // i64 per document: sequences before its end
  FileWriter bin_;
  FileWriter lengths_;
  FileWriter documents_;
  int64_t num_sequences_ = 0;
  int64_t num_documents_ = 0;
  int64_t num_tokens_ = 0;
  int64_t open_tokens_ = 0;
};

}  // namespace phalanx
