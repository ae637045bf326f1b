// Trains a byte-level BPE vocabulary from text.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace phalanx {

struct TrainTokenizerOptions {
  int64_t vocab_size = 0;  // tokens in all: 256 bytes, merges, the end-of-document token
  int num_threads = 1;
  std::string end_of_document = "<|endoftext|>";
};

/// The text of a tokenizer.json with exactly `vocab_size` tokens, numbered: bytes, merges, end of
/// document. `next_chunk` fills in the next piece of text and returns true, or false at the end; it
/// is called by one thread at a time. Chunks should end where lines or documents do. Memory grows
/// with the number of different words, not with the text. The result depends neither on the order
/// of the chunks nor on the number of threads. Throws UsageError if `vocab_size` is below 257 or
/// larger than the text has merges for.
std::string train_bpe_tokenizer(const std::function<bool(std::string& chunk)>& next_chunk,
                                const TrainTokenizerOptions& options);

}  // namespace phalanx
