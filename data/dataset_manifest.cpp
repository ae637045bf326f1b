// The manifest as JSON, and its checks.
#include "data/dataset_manifest.h"

#include <nlohmann/json.hpp>

#include "kernels/base/error.h"

namespace phalanx {

std::string to_json(const DatasetManifest& manifest) {
  nlohmann::ordered_json json = {
      {"format", "megatron indexed dataset"}, {"tokenizer_hash", manifest.tokenizer_hash},
      {"vocab_size", manifest.vocab_size},    {"end_of_document", manifest.end_of_document},
      {"append_eod", manifest.append_eod},    {"dtype", manifest.token_type},
      {"documents", manifest.num_documents},  {"tokens", manifest.num_tokens},
      {"bytes", manifest.text_bytes},         {"sources", nlohmann::ordered_json::array()}};
  for (const SourceFile& source : manifest.sources)
    json["sources"].push_back({{"path", source.path}, {"bytes", source.bytes}});
  // A path need not be UTF-8; a manifest must be.
  constexpr auto kReplace = nlohmann::ordered_json::error_handler_t::replace;
  return json.dump(2, ' ', false, kReplace) + "\n";
}

std::optional<DatasetManifest> read_manifest(const std::string& path) {
  if (!file_exists(path)) return std::nullopt;
  DatasetManifest manifest;
  try {
    const auto json = nlohmann::json::parse(read_file(path));
    json.at("tokenizer_hash").get_to(manifest.tokenizer_hash);
    json.at("vocab_size").get_to(manifest.vocab_size);
    json.at("end_of_document").get_to(manifest.end_of_document);
    json.at("append_eod").get_to(manifest.append_eod);
    json.at("dtype").get_to(manifest.token_type);
    json.at("documents").get_to(manifest.num_documents);
    json.at("tokens").get_to(manifest.num_tokens);
    json.at("bytes").get_to(manifest.text_bytes);
    for (const auto& source : json.at("sources"))
      manifest.sources.push_back({source.at("path"), source.at("bytes")});
  } catch (const nlohmann::json::exception& error) {
    fail(path, ": not the manifest of a dataset: ", error.what(),
         "; remove it to use the dataset unchecked");
  }
  return manifest;
}

void check_manifest(const IndexedDataset& data, int64_t vocab_size,
                    const std::string& tokenizer_hash) {
  const std::string path = data.prefix() + ".json";
  const auto manifest = read_manifest(path);
  if (!manifest) return;
  check(manifest->num_tokens == data.index().num_tokens() &&
            manifest->num_documents == data.index().num_documents(),
        path, " says ", manifest->num_documents, " documents and ", manifest->num_tokens,
        " tokens, but the dataset has ", data.index().num_documents(), " and ",
        data.index().num_tokens(), "; it belongs to another dataset");
  check_usage(manifest->vocab_size <= vocab_size, data.prefix(), " was made with a vocabulary of ",
              manifest->vocab_size, " ids, but the model has ", vocab_size,
              "; use the tokenizer the data was prepared with, or a larger vocabulary");
  check_usage(tokenizer_hash.empty() || manifest->tokenizer_hash == tokenizer_hash, data.prefix(),
              " was made with tokenizer ", manifest->tokenizer_hash, ", but this run uses ",
              tokenizer_hash, "; prepare the data again or use that tokenizer");
}

}  // namespace phalanx
