// Fills in what the configuration leaves to be derived.
#include "core/train/run_setup.h"
#include "kernels/base/flight_recorder.h"

namespace phalanx {

RunSetup make_run_setup(const RunConfig& config, int64_t num_data_ranks) {
  const FlightRange reading(flight_entry(FlightKind::phase, "read the tokenizer"));
  RunSetup setup{.config = config, .tokenizer = make_tokenizer(config.tokenizer), .vocabulary = {}};
  const int64_t tokens = setup.tokenizer->vocab_size();
  ModelConfig& model = setup.config.model;
  if (model.vocab_size == 0) model.vocab_size = tokens;
  check_usage(tokens <= model.vocab_size, "vocab-size ", model.vocab_size,
              " is smaller than the tokenizer's ", tokens, "; try 0 (the tokenizer's) or ", tokens);
  setup.vocabulary = {.size = model.vocab_size,
                      .end_of_document = setup.tokenizer->end_of_document(),
                      .tokenizer_hash = setup.tokenizer->content_hash()};
  TrainingConfig& training = setup.config.training;
  if (training.global_batch_size == 0)
    training.global_batch_size = training.micro_batch_size * num_data_ranks;
  if (training.train_iters == 0 && training.global_batch_size > 0)
    training.train_iters = training.train_samples / training.global_batch_size;
  return setup;
}

DType compute_dtype(ComputePrecision precision) {
  switch (precision) {
    case ComputePrecision::fp32:
      return DType::f32;
    case ComputePrecision::bf16:
      return DType::bf16;
    case ComputePrecision::fp64:
      return DType::f64;
  }
  fail("unknown precision ", static_cast<int>(precision));
}

BatchPlan make_batch_plan(const RunConfig& config, const ProcessGroup& data_ranks,
                          int64_t num_samples) {
  return {.seq_length = config.data.seq_length,
          .micro_batch_size = config.training.micro_batch_size,
          .global_batch_size = config.training.global_batch_size,
          .shard = data_ranks.rank(),
          .num_shards = data_ranks.size(),
          .num_samples = num_samples,
          .first_sample = 0,
          .seed = static_cast<uint64_t>(config.training.seed)};
}

std::string weights_path(const std::string& run_dir) {
  return run_dir + "/weights.h5";
}

}  // namespace phalanx
