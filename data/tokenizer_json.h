// Reads Hugging Face's tokenizer.json, the byte-level BPE part of it.
//
// Understood: model BPE (merges as "a b" or ["a", "b"], ignore_merges), normalizer NFC,
// pre-tokenizers ByteLevel, Split (behavior Isolated or Removed) and Digits, alone or in a Sequence
// that ends with ByteLevel, and added tokens. Anything else that would change the ids is refused by
// name. Truncation, padding and the post-processor are ignored: they add no text, and a corpus gets
// its end-of-document tokens from `phalanx prepare`.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "data/tokenizer.h"

namespace phalanx {

/// Throws UsageError that starts with `name_for_errors` (the file's name).
std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string_view json,
                                                const std::string& name_for_errors);

}  // namespace phalanx
