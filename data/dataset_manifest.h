// PREFIX.json beside a dataset: what it was made from and with which tokenizer, which the .bin and
// .idx cannot say.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/indexed_dataset.h"

namespace phalanx {

struct SourceFile {
  std::string path;
  int64_t bytes = 0;
};

struct DatasetManifest {
  std::string tokenizer_hash;
  int64_t vocab_size = 0;
  int32_t end_of_document = -1;
  bool append_eod = false;
  std::string token_type;  // "uint16" or "int32"
  int64_t num_documents = 0;
  int64_t num_tokens = 0;
  int64_t text_bytes = 0;
  std::vector<SourceFile> sources;
};

/// As JSON text.
std::string to_json(const DatasetManifest& manifest);
/// The manifest at `path`; none when the file does not exist (a dataset of another program).
/// Throws when it is there and cannot be read.
std::optional<DatasetManifest> read_manifest(const std::string& path);

/// Throws when the dataset's manifest, if there is one, disagrees with its files, needs more ids
/// than `vocab_size`, or names another tokenizer than `tokenizer_hash` (empty: not compared).
void check_manifest(const IndexedDataset& data, int64_t vocab_size,
                    const std::string& tokenizer_hash);

}  // namespace phalanx
