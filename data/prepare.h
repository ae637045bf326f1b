// From text to a token dataset: the library behind `phalanx prepare`.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/dataset_manifest.h"
#include "data/document_reader.h"
#include "data/tokenizer.h"
#include "kernels/base/fields.h"

namespace phalanx {

struct PrepareConfig {
  std::vector<std::string> input = {};
  std::string output_prefix = {};
  std::vector<std::string> json_keys = {"text"};
  InputFormat input_format = InputFormat::automatic;
  DocumentBoundary document_boundary = DocumentBoundary::file;
  bool append_eod = false;
  int64_t workers = 0;
  int64_t buffer_megabytes = 64;
};

template <class Config, class Visitor>
requires ConfigOf<Config, PrepareConfig>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Prepare");
  visit("input", config.input, "text or JSONL files, in order");
  visit("output-prefix", config.output_prefix,
        "PREFIX of PREFIX_text_document.bin, .idx and .json (text: the JSON key)");
  visit("json-keys", config.json_keys, "keys of a JSONL document, one dataset each");
  visit("input-format", config.input_format, "auto takes .jsonl and .json for JSONL");
  visit("document-boundary", config.document_boundary, "what ends a document of plain text");
  visit("append-eod", config.append_eod, "an end-of-document token after each document");
  visit("workers", config.workers, "threads that tokenize; 0 means one per core");
  visit("buffer-megabytes", config.buffer_megabytes, "text and tokens held at once, about");
}

struct PrepareProgress {
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
  double megabytes_per_second = 0.0;  // 10^6 bytes, since the start
};

struct PreparedDataset {
  std::string prefix;
  DatasetManifest manifest;
};

struct PrepareResult {
  std::vector<PreparedDataset> datasets;  // one per key
  double seconds = 0.0;
  int64_t peak_bytes = 0;  // most text and tokens held at once
};

/// Writes PREFIX_KEY_document.{bin,idx,json} for each key ("text" for plain text). The output does
/// not depend on the number of workers. `progress` (may be empty) is called on this thread after
/// each chunk. Throws UsageError for bad options and missing files, Error naming file, line and key
/// for bad content; then nothing of the output exists, and an older dataset of that name still
/// does.
PrepareResult prepare(const PrepareConfig& config, const Tokenizer& tokenizer,
                      const std::function<void(const PrepareProgress&)>& progress);

}  // namespace phalanx
