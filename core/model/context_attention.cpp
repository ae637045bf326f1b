// Attention over a shared sequence: own keys, then those of one other rank per step.
#include "core/model/context_attention.h"

#include <algorithm>
#include <array>

namespace phalanx {
namespace {

struct KeyValue {
  Tensor k, v;  // [copies of the band, B, G, positions of the piece, D]
};

/// Memory for one piece of each band, as large as any two ranks exchange: the same on all ranks.
class PieceBuffer {
 public:
  PieceBuffer(const ContextPlan& plan, const Tensor& like, std::string_view name, Arena& scratch)
      : plan_(plan), like_(like) {
    for (size_t band = 0; band < plan.bands.size(); ++band)
      blocks_.push_back(
          scratch.tensor(name, {2, shape(band, plan.largest[band]).numel()}, like.dtype));
  }
  KeyValue piece(const KeyPiece& piece) const {
    const Shape part = shape(piece.band, piece.count);
    const Tensor block = blocks_[piece.band].view({blocks_[piece.band].numel()});
    return {block.slice(0, part.numel()).view(part),
            block.slice(part.numel(), 2 * part.numel()).view(part)};
  }

 private:
  Shape shape(size_t band, int64_t count) const {
    return {plan_.bands[band].count, like_.shape[1], like_.shape[2], count, like_.shape[4]};
  }
  const ContextPlan& plan_;
  Tensor like_;  // k of this rank
  std::vector<Tensor> blocks_;
};

constexpr int kKeyChannel = 0;
constexpr int kGradientChannel = 1;

void add_messages(std::vector<Exchange>& messages, const Exchange& end, const KeyValue& send,
                  const KeyValue& receive) {
  messages.push_back({end.peer, send.k, receive.k, end.channel});
  messages.push_back({end.peer, send.v, receive.v, end.channel});
}

/// Keys and values of the steps. Two steps' buffers: the keys of the next step travel while those
/// of the last one are used.
class TravellingKeys {
 public:
  TravellingKeys(Backend& ops, ProcessGroup& cp, const ContextPlan& plan,
                 const AttentionInputs& own, Arena& scratch)
      : ops_(ops), cp_(cp), plan_(plan), own_(own) {
    for (size_t i = 0; i < std::min<size_t>(2, plan.steps.size()); ++i) {
      sent_.emplace_back(plan, own.k, "context.sent_keys", scratch);
      received_.emplace_back(plan, own.k, "context.received_keys", scratch);
    }
    start(0);
  }
  /// Waits for the keys of step `number` and starts those of the next. Nothing of the step before
  /// is used any more.
  void take(size_t number) {
    pending_->wait();
    start(number + 1);
  }
  KeyValue received(size_t number, const KeyPiece& piece) const {
    return received_[number % 2].piece(piece);
  }

 private:
  void start(size_t number) {
    if (number >= plan_.steps.size()) return;
    const ContextStep& step = plan_.steps[number];
    messages_.clear();
    for (const KeyPiece& piece : step.sent)
      add_messages(messages_, {.peer = step.to, .channel = kKeyChannel},
                   gather(piece, sent_[number % 2]), {});
    for (const KeyPiece& piece : step.received)
      add_messages(messages_, {.peer = step.from, .channel = kKeyChannel}, {},
                   received(number, piece));
    pending_ = cp_.exchange_async(messages_);
  }
  /// The piece as one tensor: a view where all positions of the band go, else a copy.
  KeyValue gather(const KeyPiece& piece, const PieceBuffer& buffer) {
    const CopyBand& band = plan_.bands[piece.band];
    const Tensor k = own_.k.slice(band.first, band.first + band.count);
    const Tensor v = own_.v.slice(band.first, band.first + band.count);
    if (piece.count == k.shape[3]) return {k, v};
    const KeyValue packed = buffer.piece(piece);
    ops_.gather_positions(packed.k, k, piece.rows);
    ops_.gather_positions(packed.v, v, piece.rows);
    return packed;
  }

  Backend& ops_;
  ProcessGroup& cp_;
  const ContextPlan& plan_;
  const AttentionInputs& own_;
  std::vector<PieceBuffer> sent_, received_;
  std::vector<Exchange> messages_;
  PendingWork pending_;
};

/// Gradients of other ranks' keys on their way home, and of own keys on theirs. They travel while
/// those of the next step are computed.
class ReturningGradients {
 public:
  ReturningGradients(Backend& ops, ProcessGroup& cp, const ContextPlan& plan,
                     const AttentionInputs& own, Arena& scratch)
      : ops_(ops),
        cp_(cp),
        plan_(plan),
        home_(plan, own.k, "context.gradients_from_others", scratch) {
    for (size_t i = 0; i < std::min<size_t>(2, plan.steps.size()); ++i)
      away_.emplace_back(plan, own.k, "context.gradients_of_others", scratch);
  }
  /// Where the gradients of a piece received in step `number` are to be computed.
  KeyValue computed(size_t number, const KeyPiece& piece) const {
    return away_[number % 2].piece(piece);
  }
  /// Sends what was computed in step `number`, after what came home in the step before was added.
  void send(size_t number, const Tensor& dk, const Tensor& dv) {
    if (number > 0) add(number - 1, dk, dv);
    const ContextStep& step = plan_.steps[number];
    messages_.clear();
    for (const KeyPiece& piece : step.received)
      add_messages(messages_, {.peer = step.from, .channel = kGradientChannel},
                   computed(number, piece), {});
    for (const KeyPiece& piece : step.sent)
      add_messages(messages_, {.peer = step.to, .channel = kGradientChannel}, {},
                   home_.piece(piece));
    pending_ = cp_.exchange_async(messages_);
  }
  /// dk, dv += what comes home in step `number`.
  void add(size_t number, const Tensor& dk, const Tensor& dv) {
    pending_->wait();
    for (const KeyPiece& piece : plan_.steps[number].sent) {
      const CopyBand& band = plan_.bands[piece.band];
      const int64_t end = band.first + band.count;
      const auto [piece_dk, piece_dv] = home_.piece(piece);
      ops_.accumulate_positions(dk.slice(band.first, end), piece_dk, piece.rows);
      ops_.accumulate_positions(dv.slice(band.first, end), piece_dv, piece.rows);
    }
  }

 private:
  Backend& ops_;
  ProcessGroup& cp_;
  const ContextPlan& plan_;
  PieceBuffer home_;
  std::vector<PieceBuffer> away_;
  std::vector<Exchange> messages_;
  PendingWork pending_;
};

/// A sum that starts from `x`: `x` itself if its type is that of accumulators.
Tensor begin_sum(Backend& ops, const Tensor& x, std::string_view name, Arena& scratch) {
  if (x.dtype == accumulator_dtype(x.dtype)) return x;
  const Tensor sum = scratch.tensor(name, x.shape, accumulator_dtype(x.dtype));
  ops.copy(sum, x);
  return sum;
}

void end_sum(Backend& ops, const Tensor& x, const Tensor& sum) {
  if (sum.dtype != x.dtype) ops.copy(x, sum);
}

void add_all(Backend& ops, const Tensor& sum, const Tensor& part) {
  const std::array<PositionRange, 1> all{{{0, part.shape.rows()}}};
  ops.accumulate_positions(sum.as_matrix(), part.as_matrix(), all);
}

}  // namespace

ContextAttention::ContextAttention(Backend& backend, ProcessGroup& cp, const AttentionMask& mask)
    : ops_(backend), cp_(cp), mask_(mask) {}

const ContextPlan& ContextAttention::plan(int64_t local_positions) const {
  if (planned_positions_ != local_positions) {
    plan_ = make_context_plan(mask_, local_positions * cp_.size(), cp_.rank(), cp_.size());
    planned_positions_ = local_positions;
  }
  return plan_;
}

AttentionInputs ContextAttention::own_inputs(const AttentionInputs& inputs) const {
  AttentionInputs own = inputs;
  own.mask = mask_;
  own.query_runs = own.key_runs = plan(inputs.q.shape[2]).own;
  return own;
}

AttentionInputs ContextAttention::part_inputs(const AttentionInputs& own, const KeyPiece& piece,
                                              const Tensor& k, const Tensor& v) const {
  AttentionInputs part = own;
  part.k = k;
  part.v = v;
  part.first_key_copy = plan_.bands[piece.band].first;
  part.key_runs = piece.positions;
  return part;
}

void ContextAttention::forward(const Tensor& out, const Tensor& lse, const AttentionInputs& inputs,
                               Arena& scratch) const {
  const AttentionInputs own = own_inputs(inputs);
  ops_.attention_forward(out, lse, own);
  if (plan_.steps.empty()) return;
  const ArenaScope scope(scratch);
  TravellingKeys keys(ops_, cp_, plan_, own, scratch);
  const Tensor sum = begin_sum(ops_, out, "context.out_sum", scratch);
  const Tensor part = scratch.tensor("context.out_part", out.shape, out.dtype);
  const Tensor part_lse = scratch.tensor("context.lse_part", lse.shape, lse.dtype);
  for (size_t number = 0; number < plan_.steps.size(); ++number) {
    keys.take(number);
    for (const KeyPiece& piece : plan_.steps[number].received) {
      const auto [k, v] = keys.received(number, piece);
      ops_.attention_forward(part, part_lse, part_inputs(own, piece, k, v));
      ops_.attention_merge(sum, lse, part, part_lse);
    }
  }
  end_sum(ops_, out, sum);
}

// With lse, out and delta of whole rows, gradients of parts simply add up.
void ContextAttention::backward(const Backend::AttentionBackward& arguments,
                                const AttentionInputs& inputs, Arena& scratch) const {
  const AttentionInputs own = own_inputs(inputs);
  ops_.attention_backward(arguments, own);
  if (plan_.steps.empty()) return;
  const ArenaScope scope(scratch);
  TravellingKeys keys(ops_, cp_, plan_, own, scratch);
  ReturningGradients gradients(ops_, cp_, plan_, own, scratch);
  const AttentionGradients& whole = arguments.gradients;
  const AttentionGradients sum{begin_sum(ops_, whole.dq, "context.dq_sum", scratch),
                               begin_sum(ops_, whole.dk, "context.dk_sum", scratch),
                               begin_sum(ops_, whole.dv, "context.dv_sum", scratch)};
  Backend::AttentionBackward part = arguments;
  part.gradients.dq = scratch.tensor("context.dq_part", whole.dq.shape, whole.dq.dtype);
  for (size_t number = 0; number < plan_.steps.size(); ++number) {
    keys.take(number);
    for (const KeyPiece& piece : plan_.steps[number].received) {
      const auto [k, v] = keys.received(number, piece);
      const auto [dk, dv] = gradients.computed(number, piece);
      part.gradients.dk = dk;
      part.gradients.dv = dv;
      ops_.attention_backward(part, part_inputs(own, piece, k, v));
      add_all(ops_, sum.dq, part.gradients.dq);
    }
    gradients.send(number, sum.dk, sum.dv);
  }
  gradients.add(plan_.steps.size() - 1, sum.dk, sum.dv);
  end_sum(ops_, whole.dq, sum.dq);
  end_sum(ops_, whole.dk, sum.dk);
  end_sum(ops_, whole.dv, sum.dv);
}

}  // namespace phalanx
