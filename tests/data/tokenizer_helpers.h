// What the tokenizer tests share: files, golden ids, the digest those are kept as.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace phalanx {

std::string read_test_file(const std::string& path);

/// The path of a file in tests/golden.
std::string golden_path(const std::string& name);

std::unique_ptr<Tokenizer> hugging_face_tokenizer(const std::string& path);

/// Count, FNV-1a 64 (over little-endian i32) and first 32 ids, as tests/golden/tokenizer_ids.py has
/// it.
nlohmann::json summary_of_ids(std::span<const int32_t> ids);

std::vector<int32_t> encoded(const Tokenizer& tokenizer, std::string_view text);

/// The texts of tests/golden/tokenizer_ids.json by name.
std::map<std::string, std::string> golden_texts();

}  // namespace phalanx
