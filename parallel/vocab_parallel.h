// Embedding and language-model loss cut over the vocabulary: the whole logits row never exists on
// one rank, and all logits of a micro-batch never exist at once.
#pragma once

#include <string>

#include "parallel/tensor_parallel.h"

namespace phalanx {

/// Rows of the table are cut over tp. The table may be padded beyond the vocabulary; padded rows
/// never take part in the softmax.
class VocabParallelEmbedding {
 public:
  /// `table` [V padded, H] is cut by rows over tp.
  VocabParallelEmbedding(const TensorParallelContext& context, Parameter& table);

  /// y [S(/tp), B, K, H] = table rows of ids [S, B], the same for all K copies.
  void forward(const Tensor& y, const Tensor& ids, Memory& memory) const;
  /// dy as y.
  void backward(const Tensor& dy, const Tensor& ids, Memory& memory);

 private:
  Backend& ops_;
  ProcessGroup& tp_;
  SequenceParallel sequence_parallel_;
  Parameter& table_;
};

/// Head and loss in one: logits = x W^T in chunks of rows, softmax cross-entropy over the cut
/// vocabulary, and, when training, the gradients at once, so that logits need not be kept.
class VocabParallelLoss {
 public:
  /// `weight` is the tied table or the head's own parameter [V padded, H], cut by rows over tp.
  VocabParallelLoss(const TensorParallelContext& context, Parameter& weight, int64_t vocab_size,
                    int64_t chunk_rows);

  struct Scales {
    double loss_scale = 1.0;  // 1 / loss tokens of the global batch
    double z_loss = 0.0;
  };
  /// x [S(/tp) * B, H], targets [S * B] i32. Writes dx as x and adds to the weight's gradient; sums
  /// [2] f64 += {cross-entropy, logsumexp^2} summed over rows with a target (the same on all tp).
  void forward_backward(const Tensor& dx, const Tensor& x, const Tensor& targets,
                        const Tensor& sums, const Scales& scales, Memory& memory);
  /// The sums only (evaluation).
  void forward(const Tensor& x, const Tensor& targets, const Tensor& sums, Memory& memory) const;
  /// logits [rows, V padded / tp] acc of x [rows, H] (generation).
  void logits(const Tensor& logits, const Tensor& x) const;

 private:
  struct Chunk {
    Tensor logits;  // [chunk rows, V padded / tp] T
    Tensor stats;   // [chunk rows, 3] acc, over all of the vocabulary
  };
  Chunk chunk_forward(const Tensor& rows, const Tensor& sums, const CrossEntropyOptions& options,
                      Memory& memory) const;
  void merge_stats(const Tensor& stats, Memory& memory) const;
  CrossEntropyOptions chunk_options(const Tensor& targets) const;
  Tensor whole_rows(const Tensor& x, Memory& memory) const;

  Backend& ops_;
  ProcessGroup& tp_;
  SequenceParallel sequence_parallel_;
  Parameter& weight_;
  int64_t vocab_size_;
  int64_t chunk_rows_;
};

}  // namespace phalanx
