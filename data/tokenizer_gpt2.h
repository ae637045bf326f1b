// Reads GPT-2's two files: the vocabulary (JSON: token to id) and the merges (text: two per line).
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "data/tokenizer.h"

namespace phalanx {

/// <|endoftext|> ends documents but is not looked for in the text: where it is spelled out, it is
/// ordinary text, as in GPT-2's own encoder. Throws UsageError that names the file at fault.
std::unique_ptr<Tokenizer> parse_gpt2_tokenizer(std::string_view vocabulary_json,
                                                const std::string& vocabulary_name,
                                                std::string_view merges_text,
                                                const std::string& merges_name);

}  // namespace phalanx
