// Host vectors of whole sequences to device tensors of this rank's positions.
#include "core/model/sequence_loader.h"

namespace phalanx {
namespace {

/// Elements after which the next part begins where kernels like their rows to begin.
constexpr int64_t kPartAlignment = Arena::kAlignment / static_cast<int64_t>(sizeof(int32_t));

}  // namespace

SequenceLoader::SequenceLoader(Backend& backend, const ProcessGroup& cp, const StageShape& shape,
                               const Tensor& rope_table)
    : ops_(backend),
      shape_(shape),
      ranges_(context_positions(shape.positions, cp.rank(), cp.size())),
      rope_table_(rope_table) {
  for (const PositionRange& range : ranges_) local_positions_ += range.end - range.begin;
  if (local_positions_ == shape.positions) return;
  for (const PositionRange& range : ranges_)
    for (int64_t position = range.begin; position < range.end; ++position)
      own_positions_.insert(own_positions_.end(), static_cast<size_t>(shape.sequences),
                            static_cast<int32_t>(position));
}

int64_t SequenceLoader::part_numel() const {
  const int64_t numel = local_positions_ * shape_.sequences;
  return (numel + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

int64_t SequenceLoader::bytes(int64_t micro_batches) const {
  return (micro_batches + 1) * kNumParts * part_numel() * dtype_bytes(DType::i32);
}

void SequenceLoader::allocate(int64_t micro_batches) {
  if (micro_batches <= capacity_) return;
  block_ = ops_.allocate(bytes(micro_batches));
  capacity_ = micro_batches;
  // What is brought early must not be overtaken by the zeros of fresh memory.
  ops_.synchronize();
}

/// [kNumParts * part_numel()]; micro-batch `capacity_` is the fixed place.
Tensor SequenceLoader::words(int64_t micro_batch) const {
  const int64_t numel = kNumParts * part_numel();
  const Tensor all{block_.get(), {(capacity_ + 1) * numel}, DType::i32, ops_.device()};
  return all.slice(micro_batch * numel, (micro_batch + 1) * numel);
}

// host [S, B] to [S/cp, B]: every range is contiguous on both sides.
void SequenceLoader::pack_positions(const std::vector<int32_t>& host, int32_t* to) const {
  const int64_t b = shape_.sequences;
  for (const PositionRange& range : ranges_)
    to = std::copy(host.data() + range.begin * b, host.data() + range.end * b, to);
}

// host [B, S] to [B, S/cp].
void SequenceLoader::pack_document_start(const std::vector<int32_t>& host, int32_t* to) const {
  for (int64_t b = 0; b < shape_.sequences; ++b)
    for (const PositionRange& range : ranges_) {
      const int32_t* sequence = host.data() + b * shape_.positions;
      to = std::copy(sequence + range.begin, sequence + range.end, to);
    }
}

void SequenceLoader::pack(const MicroBatch& batch, int32_t* to) const {
  check(batch.positions == shape_.positions && batch.sequences == shape_.sequences,
        "the stage was planned for micro-batches of ", shape_.sequences, " x ", shape_.positions,
        ", got ", batch.sequences, " x ", batch.positions);
  const int64_t numel = shape_.positions * shape_.sequences;
  const auto whole = [&](const char* name, const std::vector<int32_t>& host) {
    check(host.empty() || static_cast<int64_t>(host.size()) == numel, name, " has ", host.size(),
          " entries, expected ", shape_.positions, " x ", shape_.sequences);
    return !host.empty();
  };
  const int64_t step = part_numel();
  if (whole("tokens", batch.tokens)) pack_positions(batch.tokens, to + tokens * step);
  if (whole("targets", batch.targets)) pack_positions(batch.targets, to + targets * step);
  if (whole("position_ids", batch.position_ids))
    pack_positions(batch.position_ids, to + position_ids * step);
  else
    std::copy(own_positions_.begin(), own_positions_.end(), to + position_ids * step);
  if (whole("document_start", batch.document_start))
    pack_document_start(batch.document_start, to + document_start * step);
}

void SequenceLoader::begin_step(std::span<const MicroBatch> micro_batches, DeviceState device) {
  const auto count = static_cast<int64_t>(micro_batches.size());
  allocate(count);
  batches_ = micro_batches;
  const int64_t numel = kNumParts * part_numel();
  host_.resize(static_cast<size_t>(count * numel));
  for (int64_t m = 0; m < count; ++m)
    pack(micro_batches[static_cast<size_t>(m)], host_.data() + m * numel);
  const Tensor all{block_.get(), {count * numel}, DType::i32, ops_.device()};
  if (device == DeviceState::idle)
    ops_.upload_early(all, host_.data());
  else
    ops_.upload(all, host_.data());
}

void SequenceLoader::point(const MicroBatch& batch, const Tensor& words, ChunkState& state) const {
  const int64_t b = shape_.sequences;
  const auto part = [&](Part number, bool present, const Shape& shape) {
    const int64_t begin = number * part_numel();
    return present ? words.slice(begin, begin + local_positions_ * b).view(shape) : Tensor{};
  };
  state.arena.clear();
  state.ids = part(tokens, !batch.tokens.empty(), {local_positions_, b});
  state.targets = part(targets, !batch.targets.empty(), {local_positions_ * b});
  state.inputs.positions = local_positions_;
  state.inputs.sequences = b;
  state.inputs.rope_table = rope_table_;
  state.inputs.position_ids = part(
      position_ids, !batch.position_ids.empty() || !own_positions_.empty(), {local_positions_, b});
  state.inputs.document_start =
      part(document_start, !batch.document_start.empty(), {b, local_positions_});
}

void SequenceLoader::load(int64_t micro_batch, ChunkState& state) const {
  point(batches_[static_cast<size_t>(micro_batch)], words(micro_batch), state);
}

void SequenceLoader::load_fixed(int64_t micro_batch, ChunkState& state) const {
  const Tensor fixed = words(capacity_);
  ops_.copy(fixed, words(micro_batch));
  point(batches_[static_cast<size_t>(micro_batch)], fixed, state);
}

}  // namespace phalanx
