// What the tests of data share: temporary folders, golden files, and a tokenizer of bytes.
#pragma once

#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/indexed_dataset_writer.h"
#include "data/tokenizer.h"
#include "kernels/base/error.h"

namespace phalanx {

/// A folder that vanishes with this object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "phalanx_test_XXXXXX").string();
    check(::mkdtemp(name.data()) != nullptr, "cannot make a temporary folder");
    path_ = name;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  /// Names of all files in it, at any depth.
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path_))
      if (entry.is_regular_file()) names.push_back(entry.path().filename().string());
    return names;
  }

 private:
  std::string path_;
};

inline std::string golden_path(const std::string& name) {
  return std::string(PHALANX_SOURCE_DIR) + "/tests/golden/" + name;
}

inline const nlohmann::json& golden_order() {
  static const nlohmann::json golden =
      nlohmann::json::parse(std::ifstream(golden_path("data_order.json")));
  return golden;
}

inline std::string slurp(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  check(stream.good(), "cannot open ", path);
  return {std::istreambuf_iterator<char>(stream), {}};
}

inline void spit(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// One id per byte, 256 ends a document.
class ByteFake : public Tokenizer {
 public:
  void encode(std::string_view text, std::vector<int32_t>& ids) const override {
    for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  }
  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) text += id == 256 ? '\f' : static_cast<char>(id);
    return text;
  }
  int64_t vocab_size() const override { return 257; }
  int32_t end_of_document() const override { return 256; }
  std::string content_hash() const override { return "bytes"; }
};

/// A dataset of one-sequence documents.
inline void write_dataset(const std::string& prefix,
                          const std::vector<std::vector<int32_t>>& documents, int64_t vocab_size) {
  IndexedDatasetWriter writer(prefix, vocab_size);
  for (const auto& document : documents) {
    writer.append(document);
    writer.end_sequence();
    writer.end_document();
  }
  writer.finish();
  writer.publish();
}

/// What `action` throws, or "" when it does not.
template <class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace phalanx
