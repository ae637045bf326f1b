// Text from a trained model, token by token through the forward pass that training uses.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "core/config.h"
#include "kernels/backend.h"

namespace phalanx {

struct GenerationOptions {
  std::string prompt;
  int64_t max_new_tokens = 128;
  double temperature = 1.0;  // 0: greedy
  int64_t top_k = 0;         // 0: all tokens
  double top_p = 1.0;        // 1: all tokens
  uint64_t seed = 0;
};

/// Continues `options.prompt` (empty: a new document) with LOAD/weights.h5 until max_new_tokens or
/// the end of the document; returns the new text. `stream_piece` gets it as it grows, never half a
/// UTF-8 character. The whole forward is recomputed for every token. When prompt and text outgrow
/// seq-length, the oldest tokens leave the window. One process.
std::string run_generation(const RunConfig& config, const std::string& load_dir,
                           const GenerationOptions& options, Backend& backend,
                           const std::function<void(std::string_view)>& stream_piece);

}  // namespace phalanx
