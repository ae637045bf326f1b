// Held-out samples and the mean loss over them: the same number for any number of ranks.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "core/model/phd_stage.h"
#include "data/batch_loader.h"

namespace phalanx {

/// Per loss token, without coefficients; summed over all ranks.
struct ValidationMetrics {
  double loss = 0;
  double z_loss = 0;
  int64_t tokens = 0;  // with a loss
};

/// Samples [0, n) of one pass over the validation split, read again at every evaluation. The last
/// batch is filled up with samples that take no loss, so that every sample counts exactly once
/// whatever the number of ranks.
class ValidationSet {
 public:
  /// `plan` gives sizes and shard; its global batch is replaced by the smallest one, its
  /// num_samples is the most samples to use. Data that can be mixed or made endlessly (blends with
  /// weights, mock data) gives exactly so many.
  ValidationSet(const DataConfig& config, BatchPlan plan, const Vocabulary& vocabulary);

  /// Whether the validation split of `config` is finite by itself.
  static bool has_end(const DataConfig& config);

  int64_t num_samples() const { return num_samples_; }
  /// Collective over the world. `stop` is asked before every batch, on all ranks alike; if it says
  /// yes there is no result.
  std::optional<ValidationMetrics> evaluate(PhdStage& stage, const ProcessGroups& groups,
                                            const std::function<bool()>& stop);

 private:
  LossSums evaluate_batch(PhdStage& stage, const GlobalBatch& batch, int64_t& tokens);

  BatchPlan plan_;
  int64_t num_samples_ = 0;
  std::unique_ptr<BatchLoader> loader_;
};

}  // namespace phalanx
