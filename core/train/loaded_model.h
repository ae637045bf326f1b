// A trained model read back from a run folder, ready for forward passes.
#pragma once

#include <string>

#include "core/model/phd_stage.h"
#include "core/train/run_setup.h"

namespace phalanx {

/// Owns weights and stage; no optimizer. One thread.
class LoadedModel {
 public:
  /// Reads LOAD/weights.h5 and takes activation memory for one micro-batch of `shape`. Throws if
  /// the file does not fit `setup` (shapes, names, tokenizer) or the memory is not there.
  LoadedModel(const RunSetup& setup, const std::string& load_dir, Backend& backend,
              ProcessGroups& groups, const StageShape& shape);

  PhdStage& stage() { return stage_; }

 private:
  void reserve(Backend& backend, const StageShape& shape, DType dtype, const StageSlots& slots);

  ParameterStore store_;
  PhdStage stage_;
};

}  // namespace phalanx
