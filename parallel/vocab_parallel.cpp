// Embedding, head and loss over a vocabulary cut into rows of the table.
#include "parallel/vocab_parallel.h"

#include <algorithm>

#include "parallel/regions.h"

namespace phalanx {

VocabParallelEmbedding::VocabParallelEmbedding(const TensorParallelContext& context,
                                               Parameter& table)
    : ops_(context.backend),
      tp_(context.tp),
      sequence_parallel_(effective_sequence_parallel(context)),
      table_(table) {}

// Ids of other ranks give rows of zeros, so the sum over tp is the whole lookup, without rounding.
void VocabParallelEmbedding::forward(const Tensor& y, const Tensor& ids, Memory& memory) const {
  const ArenaScope scope(memory.scratch);
  if (sequence_parallel_ == SequenceParallel::off) {
    ops_.embedding_forward(y, table_.value, ids, table_.offset[0]);
    ReduceRegion::forward(tp_, y);
    return;
  }
  const Tensor rows = memory.scratch.tensor("embedding.partial_y",
                                            y.shape.with_dim(0, y.shape[0] * tp_.size()), y.dtype);
  ops_.embedding_forward(rows, table_.value, ids, table_.offset[0]);
  ReduceScatterRegion::forward(tp_, y, rows);
}

void VocabParallelEmbedding::backward(const Tensor& dy, const Tensor& ids, Memory& memory) {
  const ArenaScope scope(memory.scratch);
  Tensor drows = dy;
  if (sequence_parallel_ == SequenceParallel::on) {
    drows = memory.scratch.tensor("embedding.gathered_dy",
                                  dy.shape.with_dim(0, dy.shape[0] * tp_.size()), dy.dtype);
    ReduceScatterRegion::backward(tp_, drows, dy);
  }
  ops_.embedding_backward(table_.gradient, drows, ids, table_.offset[0]);
}

VocabParallelLoss::VocabParallelLoss(const TensorParallelContext& context, Parameter& weight,
                                     int64_t vocab_size, int64_t chunk_rows)
    : ops_(context.backend),
      tp_(context.tp),
      sequence_parallel_(effective_sequence_parallel(context)),
      weight_(weight),
      vocab_size_(vocab_size),
      chunk_rows_(chunk_rows) {
  check(chunk_rows >= 1, "the loss works in chunks of at least one row, not ", chunk_rows);
  check(0 < vocab_size && vocab_size <= weight.spec.global_shape[0], "vocabulary of ", vocab_size,
        " does not fit the ", weight.spec.global_shape[0], " rows of ", weight.spec.name);
}

// The logits chunk has the compute dtype: its memory becomes the gradient in place, and both
// operands of a product have one dtype. Under bf16 the logits are thereby rounded once, as in every
// mixed-precision trainer; max, sum and loss are f32.
VocabParallelLoss::Chunk VocabParallelLoss::chunk_forward(const Tensor& rows, const Tensor& sums,
                                                          const CrossEntropyOptions& options,
                                                          Memory& memory) const {
  const int64_t count = rows.shape[0];
  Chunk chunk{memory.scratch.tensor("loss.logits", {count, weight_.shape[0]}, rows.dtype),
              memory.scratch.tensor("loss.stats", {count, 3}, accumulator_dtype(rows.dtype))};
  logits(chunk.logits, rows);
  ops_.cross_entropy_forward(chunk.stats, chunk.logits, options);
  merge_stats(chunk.stats, memory);
  ops_.cross_entropy_loss(sums, chunk.stats, options);
  return chunk;
}

// Softmax over a cut row, three numbers per row and rank.
void VocabParallelLoss::merge_stats(const Tensor& stats, Memory& memory) const {
  if (tp_.size() == 1) return;
  const ArenaScope scope(memory.scratch);
  const Tensor parts =
      memory.scratch.tensor("loss.stats_of_ranks", {tp_.size(), stats.shape[0], 3}, stats.dtype);
  tp_.all_gather(parts, stats);
  ops_.cross_entropy_merge(stats, parts);
}

CrossEntropyOptions VocabParallelLoss::chunk_options(const Tensor& targets) const {
  return {.targets = targets, .vocab_begin = weight_.offset[0], .vocab_size = vocab_size_};
}

Tensor VocabParallelLoss::whole_rows(const Tensor& x, Memory& memory) const {
  if (sequence_parallel_ == SequenceParallel::off) return x;
  const Tensor rows =
      memory.scratch.tensor("loss.gathered_x", {x.shape[0] * tp_.size(), x.shape[1]}, x.dtype);
  GatherRegion::forward(tp_, rows, x);
  return rows;
}

void VocabParallelLoss::forward_backward(const Tensor& dx, const Tensor& x, const Tensor& targets,
                                         const Tensor& sums, const Scales& scales, Memory& memory) {
  const ArenaScope scope(memory.scratch);
  const bool cut = sequence_parallel_ == SequenceParallel::on;
  const Tensor rows = whole_rows(x, memory);
  const Tensor drows = cut ? memory.scratch.tensor("loss.gathered_dx", rows.shape, dx.dtype) : dx;
  for (int64_t begin = 0; begin < rows.shape[0]; begin += chunk_rows_) {
    const ArenaScope chunk_scope(memory.scratch);
    const int64_t end = std::min(begin + chunk_rows_, rows.shape[0]);
    CrossEntropyOptions options = chunk_options(targets.slice(begin, end));
    options.loss_scale = scales.loss_scale;
    options.z_loss = scales.z_loss;
    const Tensor chunk_x = rows.slice(begin, end);
    const Chunk chunk = chunk_forward(chunk_x, sums, options, memory);
    ops_.cross_entropy_backward(chunk.logits, chunk.stats, options);
    ops_.matmul(weight_.gradient, chunk.logits, chunk_x, kWeightGradient);
    ops_.matmul(drows.slice(begin, end), chunk.logits, weight_.value, kTimes);
  }
  if (cut) {
    GatherRegion::backward(tp_, dx, drows);
  } else {
    CopyRegion::backward(tp_, dx);
  }
}

void VocabParallelLoss::forward(const Tensor& x, const Tensor& targets, const Tensor& sums,
                                Memory& memory) const {
  const ArenaScope scope(memory.scratch);
  const Tensor rows = whole_rows(x, memory);
  for (int64_t begin = 0; begin < rows.shape[0]; begin += chunk_rows_) {
    const ArenaScope chunk_scope(memory.scratch);
    const int64_t end = std::min(begin + chunk_rows_, rows.shape[0]);
    chunk_forward(rows.slice(begin, end), sums, chunk_options(targets.slice(begin, end)), memory);
  }
}

void VocabParallelLoss::logits(const Tensor& logits, const Tensor& x) const {
  ops_.matmul(logits, x, weight_.value, kTimesTransposed);
}

}  // namespace phalanx
