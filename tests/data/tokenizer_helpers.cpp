// Test files and digests of ids.
#include "tests/data/tokenizer_helpers.h"

#include <fmt/format.h>

#include <fstream>
#include <sstream>

#include "kernels/base/error.h"

namespace phalanx {

std::string read_test_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  check(file.good(), "no test file ", path);
  std::ostringstream content;
  content << file.rdbuf();
  return std::move(content).str();
}

std::string golden_path(const std::string& name) {
  return std::string(PHALANX_SOURCE_DIR) + "/tests/golden/" + name;
}

std::unique_ptr<Tokenizer> hugging_face_tokenizer(const std::string& path) {
  return make_tokenizer({.type = TokenizerType::hugging_face, .model = path});
}

nlohmann::json summary_of_ids(std::span<const int32_t> ids) {
  uint64_t digest = 0xCBF29CE484222325U;
  for (const int32_t id : ids)
    for (int shift = 0; shift < 32; shift += 8)
      digest = (digest ^ (static_cast<uint32_t>(id) >> shift & 0xFF)) * 0x100000001B3U;
  const auto first = ids.first(std::min<size_t>(ids.size(), 32));
  return {{"count", ids.size()},
          {"fnv1a", fmt::format("{:016x}", digest)},
          {"first", std::vector<int32_t>(first.begin(), first.end())}};
}

std::vector<int32_t> encoded(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids;
  tokenizer.encode(text, ids);
  return ids;
}

std::map<std::string, std::string> golden_texts() {
  const auto golden = nlohmann::json::parse(read_test_file(golden_path("tokenizer_ids.json")));
  std::map<std::string, std::string> texts;
  for (const auto& [name, hex] : golden.at("texts").items()) {
    const auto digits = hex.get<std::string>();
    for (size_t i = 0; i < digits.size(); i += 2)
      texts[name].push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16)));
    texts.try_emplace(name);  // the empty text
  }
  return texts;
}

}  // namespace phalanx
