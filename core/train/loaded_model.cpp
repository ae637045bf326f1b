// Builds a stage and fills it from a weights file.
#include "core/train/loaded_model.h"

#include "core/train/weights_file.h"

namespace phalanx {

LoadedModel::LoadedModel(const RunSetup& setup, const std::string& load_dir, Backend& backend,
                         ProcessGroups& groups, const StageShape& shape)
    : stage_(setup.config.model, store_, backend, groups) {
  const DType dtype = compute_dtype(setup.config.training.precision);
  store_.allocate(backend, dtype);
  load_weights(weights_path(load_dir), setup.vocabulary.tokenizer_hash, store_, backend);
  stage_.allocate(shape, dtype, 1);
}

}  // namespace phalanx
