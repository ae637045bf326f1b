// `phalanx prepare`: text to a token dataset, learning a tokenizer first if asked to.
#include <fmt/format.h>

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/train/stop_flag.h"
#include "data/file_io.h"
#include "data/prepare.h"
#include "data/tokenizer_train.h"
#include "launch/commands.h"
#include "launch/options.h"
#include "launch/stop_signals.h"

namespace phalanx {
namespace {

constexpr char kUsage[] =
    "usage: phalanx prepare --input FILE... --output-prefix PREFIX [options]\n"
    "Tokenizes text or JSONL into PREFIX_text_document.bin and .idx (Megatron's format).";

/// One line that grows on a terminal; elsewhere a line every ten seconds.
class ProgressLine {
 public:
  void show(const PrepareProgress& progress) {
    const auto now = std::chrono::steady_clock::now();
    const auto pause = std::chrono::milliseconds(terminal_ ? 100 : 10'000);
    const bool done = progress.bytes_done >= progress.bytes_total;
    if (shown_ && !done && now - last_ < pause) return;
    shown_ = true;
    last_ = now;
    const double part = progress.bytes_total > 0 ? static_cast<double>(progress.bytes_done) /
                                                       static_cast<double>(progress.bytes_total)
                                                 : 1.0;
    const auto marks = static_cast<size_t>(part * kWidth);
    const std::string bar = std::string(marks, '#') + std::string(kWidth - marks, '.');
    std::fprintf(stderr, "%s[%s] %5.1f %%  %.1f of %.1f MB  %.1f MB/s%s", terminal_ ? "\r" : "",
                 bar.c_str(), 100 * part, static_cast<double>(progress.bytes_done) / 1e6,
                 static_cast<double>(progress.bytes_total) / 1e6, progress.megabytes_per_second,
                 terminal_ && !done ? "" : "\n");
  }

 private:
  static constexpr size_t kWidth = 30;
  bool terminal_ = isatty(STDERR_FILENO) == 1;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_;
};

/// The text of all documents of a chunk; of JSONL lines, the values of `keys`.
std::string chunk_text(const TextChunk& chunk, const std::vector<std::string>& keys) {
  if (!chunk.is_jsonl) return chunk.text;
  std::string text;
  std::string_view rest = chunk.text;
  for (int64_t line = chunk.first_line; !rest.empty(); ++line) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view json = rest.substr(0, end);
    rest.remove_prefix(std::min(rest.size(), end + 1));
    if (json.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const auto document = nlohmann::json::parse(json, nullptr, false);
    for (const auto& key : keys) {
      check(document.is_object() && document.contains(key) && document[key].is_string(), "line ",
            line, " of the input is no JSON object with a text under the key ", key);
      text += document[key].get_ref<const std::string&>() + "\n";
    }
  }
  return text;
}

void train_tokenizer(const PrepareConfig& config, const TokenizerTraining& training) {
  DocumentReader reader(config.input,
                        {.format = config.input_format, .boundary = config.document_boundary});
  const auto next_chunk = [&](std::string& text) {
    TextChunk chunk;
    if (!reader.next(chunk)) return false;
    text = chunk_text(chunk, config.json_keys);
    return true;
  };
  const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const int threads = config.workers > 0 ? static_cast<int>(config.workers) : cores;
  const std::string json = train_bpe_tokenizer(
      next_chunk, {.vocab_size = training.train_tokenizer, .num_threads = threads});
  TemporaryFile file(training.tokenizer_output);
  FileWriter writer(file.path());
  writer.write(json.data(), static_cast<int64_t>(json.size()));
  writer.flush();
  file.publish();
  std::printf("tokenizer with %lld tokens written to %s\n",
              static_cast<long long>(training.train_tokenizer), training.tokenizer_output.c_str());
}

void check_options(const PrepareConfig& config, const TokenizerTraining& training,
                   std::vector<std::string>& problems) {
  if (config.input.empty()) problems.push_back("input is empty: give --input FILE...");
  if (config.output_prefix.empty() && training.train_tokenizer == 0)
    problems.push_back("output-prefix is empty: give --output-prefix PREFIX");
  if (config.workers < 0)
    problems.push_back(
        fmt::format("workers {} is negative; the nearest is 0 (one per core)", config.workers));
  if (training.train_tokenizer != 0 && training.train_tokenizer < 257)
    problems.push_back(
        fmt::format("train-tokenizer {} is too small for 256 bytes and an end of "
                    "document; the nearest is 257",
                    training.train_tokenizer));
  if (training.train_tokenizer > 0 && training.tokenizer_output.empty())
    problems.push_back("tokenizer-output is empty: name the tokenizer.json to write");
}

}  // namespace

int run_prepare(const Arguments& arguments) {
  PrepareConfig config;
  TokenizerTraining training;
  TokenizerConfig tokenizer;
  RunConfig unused;  // presets have no meaning here
  OptionTable table;
  visit_fields(config, table);
  visit_fields(tokenizer, table);
  visit_fields(training, table);
  if (wants_help(arguments)) {
    std::fputs(help_text(kUsage, table).c_str(), stdout);
    return 0;
  }
  auto problems = apply_options(arguments, table, unused);
  check_options(config, training, problems);
  throw_problems(problems);
  if (training.train_tokenizer > 0) {
    train_tokenizer(config, training);
    tokenizer.type = TokenizerType::hugging_face;
    tokenizer.model = training.tokenizer_output;
  }
  if (config.output_prefix.empty()) return 0;
  ProgressLine line;
  hold_signals();
  stop_on_signals({"SIGINT", "SIGTERM"});
  // Thrown here, an error unwinds the whole pipeline, and its temporary files go with it.
  const auto show = [&](const PrepareProgress& progress) {
    check(!stop_requested().load(), "stopped by a signal; nothing was written");
    line.show(progress);
  };
  const PrepareResult result = prepare(config, *make_tokenizer(tokenizer), show);
  for (const auto& dataset : result.datasets)
    std::printf("%s: %lld documents, %lld tokens\n", dataset.prefix.c_str(),
                static_cast<long long>(dataset.manifest.num_documents),
                static_cast<long long>(dataset.manifest.num_tokens));
  std::printf("done in %.1f s, at most %.1f MB of text and tokens held at once\n", result.seconds,
              static_cast<double>(result.peak_bytes) / 1e6);
  return 0;
}

}  // namespace phalanx
