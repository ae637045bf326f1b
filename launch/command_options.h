// Options that only one subcommand has, beside the run configuration. Same visitor convention as
// every configuration struct.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/train/run_generation.h"
#include "kernels/base/fields.h"

namespace phalanx {

/// Where further values come from.
struct SourceOptions {
  std::string config;
  std::string model;
};

template <class Config, class Visitor>
requires ConfigOf<Config, SourceOptions>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Sources");
  visit("config", config.config, "INI-style file of name = value lines");
  visit("model", config.model, "named model: shape and recipe; see `phalanx info --list`");
}

/// What `phalanx train` does instead of training.
struct TrainOptions {
  bool verify_layout = false;
};

template <class Config, class Visitor>
requires ConfigOf<Config, TrainOptions>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Check");
  visit("verify-layout", config.verify_layout,
        "do not train: run two steps of a shrunken copy of the model in this layout and on one "
        "fp32 rank, compare loss, gradients and weights, and end with 0 if they are the same");
}

/// The same for subcommands that start from a finished run. The layout it was trained in is not
/// taken over: weights load on any mesh, and these subcommands run on other numbers of ranks.
struct LoadOptions {
  std::string load;
  std::string config;
};

template <class Config, class Visitor>
requires ConfigOf<Config, LoadOptions>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Sources");
  visit("load", config.load, "run folder: weights, and config.ini as the base configuration");
  visit("config", config.config, "INI-style file of name = value lines");
}

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

/// The seed of the draws is the run configuration's.
template <class Config, class Visitor>
requires ConfigOf<Config, GenerationOptions>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Generation");
  visit("prompt", config.prompt, "text to continue; empty: a new document");
  visit("max-new-tokens", config.max_new_tokens, "tokens to write at most");
  visit("temperature", config.temperature, "0: always the likeliest token");
  visit("top-k", config.top_k, "draw from this many likeliest tokens; 0: all");
  visit("top-p", config.top_p, "draw from the likeliest tokens that hold this much probability");
}

/// What prepare reads beside data/prepare.h's options.
struct TokenizerTraining {
  std::string config;
  int64_t train_tokenizer = 0;
  std::string tokenizer_output;
};

template <class Config, class Visitor>
requires ConfigOf<Config, TokenizerTraining>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Tokenizer training");
  visit("config", config.config, "INI-style file of name = value lines");
  visit("train-tokenizer", config.train_tokenizer,
        "first learn a BPE vocabulary of this many tokens from the input; 0: no");
  visit("tokenizer-output", config.tokenizer_output, "tokenizer.json to write");
}

/// Names of all options of all subcommands.
std::vector<std::string> every_option_name();

}  // namespace phalanx
