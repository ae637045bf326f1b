// Options that only one subcommand has, beside the run configuration. Same visitor convention as
// every configuration struct.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/fields.h"

namespace phalanx {

struct InfoOptions {
  int64_t world_size = 1;
  bool json = false;
  bool list = false;
};

template <class Config, class Visitor>
requires ConfigOf<Config, InfoOptions>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Info");
  visit("world-size", config.world_size, "ranks of the layout to describe");
  visit("json", config.json, "print one JSON object");
  visit("list", config.list, "list the named models");
}

/// What evaluate reads beside the configuration of the run it loads.
struct LoadOptions {
  std::string config;
  std::string load;
};

template <class Config, class Visitor>
requires ConfigOf<Config, LoadOptions>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Sources");
  visit("load", config.load, "run folder: weights, and config.ini as the base configuration");
  visit("config", config.config, "INI-style file of name = value lines");
}

struct GenerateOptions {
  std::string prompt;
  int64_t max_new_tokens = 128;
  double temperature = 1.0;
  int64_t top_k = 0;
  double top_p = 1.0;
  int64_t generate_seed = 1;
};

template <class Config, class Visitor>
requires ConfigOf<Config, GenerateOptions>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Generation");
  visit("prompt", config.prompt, "text to continue");
  visit("max-new-tokens", config.max_new_tokens, "tokens to write at most");
  visit("temperature", config.temperature, "0: always the likeliest token");
  visit("top-k", config.top_k, "draw from the K likeliest tokens; 0: all");
  visit("top-p", config.top_p, "draw from the likeliest tokens that hold this much probability");
  visit("generate-seed", config.generate_seed, "seed of the draws");
}

struct PrepareOptions {
  std::string config;
  std::vector<std::string> input;
  std::string output_prefix;
  std::string json_keys;
  bool append_eod = false;
  int64_t workers = 0;
  int64_t train_tokenizer = 0;
  std::string tokenizer_output;
};

template <class Config, class Visitor>
requires ConfigOf<Config, PrepareOptions>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Prepare");
  visit("config", config.config, "INI-style file of name = value lines");
  visit("input", config.input, "text files, or JSON lines with json-keys");
  visit("output-prefix", config.output_prefix, "writes PREFIX_text_document.bin and .idx");
  visit("json-keys", config.json_keys, "key of the text in each JSON line; empty: plain text");
  visit("append-eod", config.append_eod, "end every document with the end-of-document token");
  visit("workers", config.workers, "threads; 0: one per core");
  visit("train-tokenizer", config.train_tokenizer,
        "learn a BPE vocabulary of this size first; 0: no");
  visit("tokenizer-output", config.tokenizer_output, "where the learnt tokenizer.json goes");
}

/// Names of all options of all subcommands.
std::vector<std::string> every_option_name();

}  // namespace phalanx
