// What training, evaluation and generation all derive from the run configuration.
#pragma once

#include <memory>
#include <string>

#include "core/config.h"
#include "data/batch_loader.h"
#include "parallel/process_groups.h"

namespace phalanx {

/// A configuration with every "0 means ..." filled in, and the tokenizer it was filled from.
struct RunSetup {
  RunConfig config;  // vocab_size, global_batch_size and train_iters are set
  std::unique_ptr<Tokenizer> tokenizer;
  Vocabulary vocabulary;
};

/// Throws UsageError if the tokenizer has more ids than the model's vocabulary.
RunSetup make_run_setup(const RunConfig& config, int64_t num_data_ranks);

DType compute_dtype(ComputePrecision precision);

/// This rank's batches of `num_samples` samples over all ranks.
BatchPlan make_batch_plan(const RunConfig& config, const ProcessGroup& data_ranks,
                          int64_t num_samples);

/// RUN/weights.h5 of a run folder.
std::string weights_path(const std::string& run_dir);

}  // namespace phalanx
