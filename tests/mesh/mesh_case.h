// MeshCase: a model and a layout as one line of words, so that lists of layouts can be read.
#pragma once

#include <string>

#include "core/config.h"
#include "core/train/layout_check.h"

namespace phalanx::test {

/// What "cswa2: tp2 sp pp2 dp2" means. Before the colon a model: cswa2, swa3, naive2, hybrid, moe,
/// sparse, olmo2 (full-width norms), untied, documents. After it: tpN cpN ppN dpN epN etpN, sp, vpN
/// (virtual stages), gpipe, zb, recompute=WORD, zero3, layout=3,1, kvN (key-value heads).
struct MeshCase {
  std::string text;
  int64_t world_size = 1;
  LayoutCase layout;

  explicit MeshCase(const std::string& line);
  /// The run that has this layout, to be validated.
  RunConfig run_config() const;
  /// The text as a name for ctest.
  std::string name() const;
};

}  // namespace phalanx::test
