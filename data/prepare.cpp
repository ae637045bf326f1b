// The stages of `prepare`: encode chunks on workers, append their tokens in order, publish at last.
#include "data/prepare.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "data/indexed_dataset_writer.h"
#include "data/ordered_pipeline.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

/// Where a sequence of tokens ends, or pauses.
struct Cut {
  size_t tokens_end = 0;
  bool ends_document = false;
};

/// Tokens of one chunk for one key.
struct EncodedKey {
  std::vector<int32_t> tokens;
  std::vector<Cut> cuts;
  int64_t text_bytes = 0;
};

struct EncodedChunk {
  std::vector<EncodedKey> keys;
  int64_t source_bytes = 0;
  bool is_jsonl = false;
  int64_t bytes() const {
    size_t sum = 0;
    for (const EncodedKey& key : keys)
      sum += key.tokens.capacity() * sizeof(int32_t) + key.cuts.capacity() * sizeof(Cut);
    return static_cast<int64_t>(sum);
  }
};

/// Encodes chunks; no state, so any number of threads.
class ChunkEncoder {
 public:
  ChunkEncoder(const PrepareConfig& config, const Tokenizer& tokenizer)
      : config_(config), tokenizer_(tokenizer) {}

  void encode(const TextChunk& chunk, EncodedChunk& out) const {
    out.keys.resize(config_.json_keys.size());
    out.source_bytes = chunk.source_bytes;
    out.is_jsonl = chunk.is_jsonl;
    if (chunk.is_jsonl) {
      encode_lines(chunk, out);
    } else {
      encode_segments(chunk, out.keys.front());
    }
  }

 private:
  void add(std::string_view text, bool ends_document, EncodedKey& out) const {
    tokenizer_.encode(text, out.tokens);
    out.cuts.push_back({.tokens_end = out.tokens.size(), .ends_document = ends_document});
    out.text_bytes += static_cast<int64_t>(text.size());
  }

  void encode_segments(const TextChunk& chunk, EncodedKey& out) const {
    int64_t begin = 0;
    for (const Segment& segment : chunk.segments) {
      const auto size = static_cast<size_t>(segment.end - begin);
      add(std::string_view(chunk.text).substr(static_cast<size_t>(begin), size),
          segment.ends_document, out);
      begin = segment.end;
    }
  }

  void encode_lines(const TextChunk& chunk, EncodedChunk& out) const {
    const std::string_view text = chunk.text;
    int64_t line = chunk.first_line;
    for (size_t begin = 0; begin < text.size(); ++line) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      const std::string place = fmt::format("{}:{}", config_.input[chunk.file], line);
      encode_line(text.substr(begin, end - begin), place, out);
      begin = end + 1;
    }
  }

  void encode_line(std::string_view line, const std::string& place, EncodedChunk& out) const {
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) return;
    nlohmann::json document;
    try {
      document = nlohmann::json::parse(line);
    } catch (const nlohmann::json::exception& error) {
      fail(place, ": not a JSON document: ", error.what());
    }
    check(document.is_object(), place, ": a JSON ", document.type_name(), ", not an object");
    for (size_t k = 0; k < config_.json_keys.size(); ++k) {
      const std::string& key = config_.json_keys[k];
      const auto found = document.find(key);
      check(found != document.end(), place, ": has no key \"", key, "\"; see --json-keys");
      check(found->is_string(), place, ": key \"", key, "\" holds a JSON ", found->type_name(),
            ", not a string");
      add(found->get_ref<const std::string&>(), true, out.keys[k]);
    }
  }

  const PrepareConfig& config_;
  const Tokenizer& tokenizer_;
};

/// One key's dataset in the making.
class KeyOutput {
 public:
  KeyOutput(std::string prefix, const Tokenizer& tokenizer, bool append_eod)
      : prefix_(std::move(prefix)),
        writer_(prefix_, tokenizer.vocab_size()),
        manifest_file_(prefix_ + ".json") {
    manifest_.tokenizer_hash = tokenizer.content_hash();
    manifest_.vocab_size = tokenizer.vocab_size();
    manifest_.end_of_document = tokenizer.end_of_document();
    manifest_.append_eod = append_eod;
    manifest_.token_type = token_type_name(writer_.token_type());
  }

  void append(const EncodedKey& key, bool is_jsonl) {
    size_t begin = 0;
    for (const Cut& cut : key.cuts) {
      writer_.append(std::span(key.tokens).subspan(begin, cut.tokens_end - begin));
      begin = cut.tokens_end;
      if (cut.ends_document) end_document(is_jsonl);
    }
    manifest_.text_bytes += key.text_bytes;
  }

  void finish(const std::vector<SourceFile>& sources) {
    writer_.finish();
    manifest_.sources = sources;
    manifest_.num_documents = writer_.num_documents();
    manifest_.num_tokens = writer_.num_tokens();
    FileWriter file(manifest_file_.path());
    const std::string text = to_json(manifest_);
    file.write(text.data(), static_cast<int64_t>(text.size()));
    file.flush();
  }

  void publish() {
    manifest_file_.publish();
    writer_.publish();
  }
  void withdraw() const {
    for (const char* extension : {".idx", ".bin", ".json"})
      std::remove((prefix_ + extension).c_str());
  }
  PreparedDataset result() const { return {prefix_, manifest_}; }

 private:
  /// Without tokens there is no sequence, and in plain text no document either (JSONL keeps it, as
  /// Megatron does, so that the documents of several keys correspond).
  void end_document(bool is_jsonl) {
    if (writer_.open_tokens() > 0) {
      if (manifest_.append_eod) writer_.append(std::array{manifest_.end_of_document});
      writer_.end_sequence();
    } else if (!is_jsonl) {
      return;
    }
    writer_.end_document();
  }

  std::string prefix_;
  IndexedDatasetWriter writer_;
  TemporaryFile manifest_file_;
  DatasetManifest manifest_;
};

std::vector<SourceFile> check_inputs(const PrepareConfig& config, const Tokenizer& tokenizer) {
  check_usage(!config.input.empty(), "no input files; give --input FILE ...");
  check_usage(!config.output_prefix.empty(), "no output; give --output-prefix PREFIX");
  check_usage(config.workers >= 0, "workers ", config.workers, " must be at least 0");
  check_usage(config.buffer_megabytes >= 1, "buffer-megabytes ", config.buffer_megabytes,
              " must be at least 1");
  const std::set<std::string> keys(config.json_keys.begin(), config.json_keys.end());
  check_usage(!keys.empty() && keys.size() == config.json_keys.size(),
              "json-keys must name each key once, and at least one");
  check_usage(!config.append_eod || tokenizer.end_of_document() >= 0,
              "--append-eod needs a tokenizer with an end-of-document token");
  std::vector<SourceFile> sources;
  for (const std::string& path : config.input) {
    check_usage(file_exists(path), "there is no file ", path);
    sources.push_back({path, file_bytes(path)});
  }
  return sources;
}

void publish_all(std::vector<std::unique_ptr<KeyOutput>>& outputs) {
  size_t done = 0;
  try {
    for (; done < outputs.size(); ++done) outputs[done]->publish();
  } catch (...) {
    for (size_t i = 0; i <= done && i < outputs.size(); ++i) outputs[i]->withdraw();
    throw;
  }
}

}  // namespace

PrepareResult prepare(const PrepareConfig& config, const Tokenizer& tokenizer,
                      const std::function<void(const PrepareProgress&)>& progress) {
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const std::vector<SourceFile> sources = check_inputs(config, tokenizer);
  make_folders(folder_of(config.output_prefix));
  std::vector<std::unique_ptr<KeyOutput>> outputs;
  for (const std::string& key : config.json_keys)
    outputs.push_back(std::make_unique<KeyOutput>(config.output_prefix + "_" + key + "_document",
                                                  tokenizer, config.append_eod));

  PrepareProgress state;
  for (const SourceFile& source : sources) state.bytes_total += source.bytes;
  DocumentReader reader(config.input,
                        {.format = config.input_format, .boundary = config.document_boundary});
  const ChunkEncoder encoder(config, tokenizer);
  const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
  OrderedPipeline<TextChunk, EncodedChunk> pipeline(
      {.read =
           [&](TextChunk& chunk) {
             if (!reader.next(chunk)) return false;
             check_usage(chunk.is_jsonl || config.json_keys.size() == 1, config.input[chunk.file],
                         " is plain text, which has no --json-keys");
             return true;
           },
       .transform = [&](const TextChunk& chunk, EncodedChunk& out) { encoder.encode(chunk, out); },
       .write =
           [&](const EncodedChunk& chunk) {
             for (size_t k = 0; k < outputs.size(); ++k)
               outputs[k]->append(chunk.keys[k], chunk.is_jsonl);
             state.bytes_done += chunk.source_bytes;
             state.megabytes_per_second = static_cast<double>(state.bytes_done) / 1e6 / seconds();
             if (progress) progress(state);
           }},
      config.workers > 0 ? config.workers : cores, config.buffer_megabytes * 1'000'000);
  pipeline.run();

  PrepareResult result;
  for (const auto& output : outputs) output->finish(sources);
  publish_all(outputs);
  for (const auto& output : outputs) result.datasets.push_back(output->result());
  result.seconds = seconds();
  result.peak_bytes = pipeline.peak_bytes();
  return result;
}

}  // namespace phalanx
