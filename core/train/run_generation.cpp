// The generation loop.
#include "core/train/run_generation.h"

#include <algorithm>

#include "core/train/loaded_model.h"
#include "core/train/sampling.h"
#include "kernels/base/philox.h"

namespace phalanx {
namespace {

std::vector<int32_t> encode_prompt(const RunSetup& setup, const std::string& prompt) {
  std::vector<int32_t> ids;
  setup.tokenizer->encode(prompt, ids);
  // The end of the previous document is what stands before a new one in the training data.
  if (ids.empty() && setup.vocabulary.end_of_document >= 0)
    ids.push_back(setup.vocabulary.end_of_document);
  check_usage(!ids.empty(),
              "the prompt is empty and the tokenizer has no end-of-document token to "
              "start from; give --prompt");
  return ids;
}

/// Positions of the forward pass: room for prompt and text, in whole chunks, because a chunk is
/// what the hidden copies were trained to stay in; never more than the trained length.
int64_t window_size(const RunConfig& config, int64_t wanted) {
  const int64_t chunk = std::max<int64_t>(1, config.model.phd_chunk);
  return std::min(config.data.seq_length, (wanted + chunk - 1) / chunk * chunk);
}

/// The last tokens of `ids` at the front of `batch`; what follows cannot be seen by them. Returns
/// how many there are.
int64_t fill_window(MicroBatch& batch, const std::vector<int32_t>& ids) {
  const auto count = std::min(ids.size(), static_cast<size_t>(batch.positions));
  std::copy(ids.end() - static_cast<std::ptrdiff_t>(count), ids.end(), batch.tokens.begin());
  return static_cast<int64_t>(count);
}

/// Collects bytes and hands on whole characters.
class TextStream {
 public:
  explicit TextStream(const std::function<void(std::string_view)>& sink) : sink_(sink) {}
  void add(std::string_view bytes) {
    text_ += bytes;
    show(shown_ + complete_utf8_prefix(std::string_view(text_).substr(shown_)));
  }
  std::string finish() {
    show(text_.size());
    return std::move(text_);
  }

 private:
  void show(size_t end) {
    if (end > shown_ && sink_) sink_(std::string_view(text_).substr(shown_, end - shown_));
    shown_ = end;
  }
  const std::function<void(std::string_view)>& sink_;
  std::string text_;
  size_t shown_ = 0;
};

}  // namespace

std::string run_generation(const RunConfig& config, const std::string& load_dir,
                           const GenerationOptions& options, Backend& backend,
                           const std::function<void(std::string_view)>& stream_piece) {
  const SamplingOptions sampling{
      .temperature = options.temperature, .top_k = options.top_k, .top_p = options.top_p};
  check_sampling(sampling);
  check_usage(options.max_new_tokens >= 0, "max-new-tokens ", options.max_new_tokens,
              " must be 0 or more");
  const RunSetup setup = make_run_setup(config, 1);
  std::vector<int32_t> ids = encode_prompt(setup, options.prompt);
  const int64_t wanted = static_cast<int64_t>(ids.size()) + options.max_new_tokens;
  MicroBatch batch;
  batch.positions = window_size(setup.config, wanted);
  batch.sequences = 1;
  batch.tokens.resize(static_cast<size_t>(batch.positions));

  ProcessGroups groups = make_single_process_groups(&backend);
  LoadedModel model(setup, load_dir, backend, groups, {batch.positions, 1});
  // Ids beyond the tokenizer's (padding of the vocabulary) have no text.
  const auto num_choices = static_cast<size_t>(setup.tokenizer->vocab_size());
  const Philox random(options.seed, "generation");
  TextStream stream(stream_piece);
  for (int64_t i = 0; i < options.max_new_tokens; ++i) {
    const int64_t count = fill_window(batch, ids);
    const std::vector<float> logits = model.stage().last_copy_logits(batch, count - 1);
    const int32_t token = choose_token(std::span(logits).first(num_choices), sampling,
                                       random.uniform(static_cast<uint64_t>(i)));
    if (token == setup.vocabulary.end_of_document) break;
    ids.push_back(token);
    stream.add(setup.tokenizer->decode({&token, 1}));
  }
  return stream.finish();
}

}  // namespace phalanx
