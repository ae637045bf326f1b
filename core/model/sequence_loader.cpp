// Host vectors of whole sequences to device tensors of this rank's positions.
#include "core/model/sequence_loader.h"

namespace phalanx {

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

// host [S, B] to [S/cp, B]: every range is contiguous on both sides.
Tensor SequenceLoader::upload(Arena& arena, const char* name,
                              const std::vector<int32_t>& host) const {
  if (host.empty()) return {};
  const int64_t b = shape_.sequences;
  check(static_cast<int64_t>(host.size()) == shape_.positions * b, name, " has ", host.size(),
        " entries, expected ", shape_.positions, " x ", b);
  const Tensor ids = arena.tensor(name, {local_positions_, b}, DType::i32);
  int64_t at = 0;
  for (const PositionRange& range : ranges_) {
    const int64_t count = range.end - range.begin;
    ops_.upload(ids.slice(at, at + count), host.data() + range.begin * b);
    at += count;
  }
  return ids;
}

// host [B, S] to [B, S/cp].
Tensor SequenceLoader::upload_document_start(Arena& arena, const std::vector<int32_t>& host) const {
  if (host.empty()) return {};
  check(static_cast<int64_t>(host.size()) == shape_.positions * shape_.sequences,
        "document_start has ", host.size(), " entries, expected ", shape_.sequences, " x ",
        shape_.positions);
  const Tensor starts =
      arena.tensor("document_start", {shape_.sequences, local_positions_}, DType::i32);
  const Tensor flat = starts.view({starts.numel()});
  int64_t at = 0;
  for (int64_t b = 0; b < shape_.sequences; ++b) {
    for (const PositionRange& range : ranges_) {
      const int64_t count = range.end - range.begin;
      ops_.upload(flat.slice(at, at + count), host.data() + b * shape_.positions + range.begin);
      at += count;
    }
  }
  return starts;
}

Tensor SequenceLoader::position_ids(Arena& arena, const std::vector<int32_t>& host) const {
  if (!host.empty() || own_positions_.empty()) return upload(arena, "position_ids", host);
  const Tensor ids = arena.tensor("position_ids", {local_positions_, shape_.sequences}, DType::i32);
  ops_.upload(ids, own_positions_.data());
  return ids;
}

void SequenceLoader::load(const MicroBatch& batch, ChunkState& state) const {
  check(batch.positions == shape_.positions && batch.sequences == shape_.sequences,
        "the stage was planned for micro-batches of ", shape_.sequences, " x ", shape_.positions,
        ", got ", batch.sequences, " x ", batch.positions);
  state.arena.clear();
  state.ids = upload(state.arena, "ids", batch.tokens);
  state.targets = upload(state.arena, "targets", batch.targets);
  if (state.targets) state.targets = state.targets.view({state.targets.numel()});
  state.inputs.positions = local_positions_;
  state.inputs.sequences = shape_.sequences;
  state.inputs.rope_table = rope_table_;
  state.inputs.position_ids = position_ids(state.arena, batch.position_ids);
  state.inputs.document_start = upload_document_start(state.arena, batch.document_start);
}

}  // namespace phalanx
