// The loop over a schedule's actions, and the messages between neighbouring chunks.
#include "parallel/pipeline_executor.h"

#include <array>

namespace phalanx {
namespace {

using enum PipelineActionKind;

/// Buffers in turn per chunk and direction: one in use, one on its way.
constexpr size_t kNumBuffers = 2;

/// What one chunk receives from one side, or sends to it.
class Lane {
 public:
  size_t num_started() const { return num_started_; }
  /// True if no more than one other message of this lane is still in use.
  bool has_room() const { return num_started_ < num_used_ + kNumBuffers; }
  void start(PendingWork work) { works_[num_started_++ % kNumBuffers] = std::move(work); }
  /// Waits for the oldest message not yet used.
  void wait() {
    check(num_used_ < num_started_, "a pipeline action runs before its input was asked for");
    const PendingWork work = std::move(works_[num_used_ % kNumBuffers]);
    if (work) work->wait();
  }
  void release() { ++num_used_; }
  /// Waits until the memory of the message before the last one may be written.
  void make_room() {
    if (has_room()) return;
    wait();
    release();
  }
  void drain() {
    for (; num_used_ < num_started_; release()) wait();
  }

 private:
  std::array<PendingWork, kNumBuffers> works_;
  size_t num_started_ = 0;
  size_t num_used_ = 0;
};

/// One chunk in one direction: forwards, or backwards.
struct Flow {
  bool receives = false;  // false at the model's end it comes from
  bool sends = false;
  int source = 0;  // ranks of pp
  int destination = 0;
  int receive_channel = 0;
  int send_channel = 0;
  std::vector<PipelineAction> actions;  // of this flow, in order
  Lane incoming;
  Lane outgoing;
};

class PipelineRun {
 public:
  PipelineRun(const std::vector<PipelineAction>& actions, PipelineStage& stage, ProcessGroup& pp,
              int64_t num_chunks)
      : actions_(actions), stage_(stage), pp_(pp), num_virtual_(num_chunks * pp.size()) {
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      forwards_.push_back(make_flow(chunk, 1));
      backwards_.push_back(make_flow(chunk, -1));
      last_of_chunk_.push_back(actions.size());
    }
    for (size_t i = 0; i < actions.size(); ++i) {
      const int64_t chunk = actions[i].chunk;
      check(0 <= chunk && chunk < num_chunks, "a pipeline action in chunk ", chunk, " of ",
            num_chunks);
      if (actions[i].kind != backward_weight) flow_of(actions[i]).actions.push_back(actions[i]);
      if (actions[i].kind != forward) last_of_chunk_[static_cast<size_t>(chunk)] = i;
    }
  }

  void run() {
    for (size_t i = 0; i < actions_.size(); ++i) {
      post_receives();
      const bool last = last_of_chunk_[static_cast<size_t>(actions_[i].chunk)] == i;
      if (actions_[i].kind == backward_weight) {
        stage_.backward_weight(actions_[i], last);
      } else {
        run_in_flow(actions_[i], last);
      }
    }
    for (auto* flows : {&forwards_, &backwards_})
      for (Flow& flow : *flows) flow.outgoing.drain();
  }

 private:
  /// `step`: 1 forwards, -1 backwards. A message's channel is the virtual stage it goes to, twice,
  /// so that the two directions differ even where they join the same two ranks.
  Flow make_flow(int64_t chunk, int64_t step) const {
    const int64_t here = chunk * pp_.size() + pp_.rank();
    const int64_t before = here - step;
    const int64_t after = here + step;
    const int direction = step > 0 ? 0 : 1;
    const auto rank_of = [&](int64_t v) { return static_cast<int>((v + pp_.size()) % pp_.size()); };
    const auto inside = [&](int64_t v) { return 0 <= v && v < num_virtual_; };
    return {.receives = inside(before),
            .sends = inside(after),
            .source = rank_of(before),
            .destination = rank_of(after),
            .receive_channel = static_cast<int>(2 * here) + direction,
            .send_channel = static_cast<int>(2 * after) + direction};
  }

  Flow& flow_of(const PipelineAction& action) {
    return (action.kind == forward ? forwards_ : backwards_)[static_cast<size_t>(action.chunk)];
  }

  Tensor buffer_for(const PipelineAction& action) {
    return action.kind == forward ? stage_.forward_buffer(action.micro_batch, action.chunk)
                                  : stage_.backward_buffer(action.micro_batch, action.chunk);
  }

  /// As early as the buffers allow, so that messages travel while the rank computes. What comes
  /// from this rank itself is put there by `send`.
  void post_receives() {
    for (auto* flows : {&forwards_, &backwards_})
      for (Flow& flow : *flows)
        while (flow.receives && flow.source != pp_.rank() && flow.incoming.has_room() &&
               flow.incoming.num_started() < flow.actions.size()) {
          const PipelineAction& action = flow.actions[flow.incoming.num_started()];
          const Exchange message{
              .peer = flow.source, .receive = buffer_for(action), .channel = flow.receive_channel};
          flow.incoming.start(pp_.exchange_async({&message, 1}));
        }
  }

  void run_in_flow(const PipelineAction& action, bool last) {
    Flow& flow = flow_of(action);
    if (flow.receives) flow.incoming.wait();
    flow.outgoing.make_room();
    const Tensor output =
        action.kind == forward ? stage_.forward(action) : stage_.backward(action, last);
    if (flow.receives) flow.incoming.release();
    if (flow.sends) send(action, flow, output);
  }

  void send(const PipelineAction& action, Flow& flow, const Tensor& output) {
    check(static_cast<bool>(output), action_name(action.kind), " of micro-batch ",
          action.micro_batch, " in chunk ", action.chunk, " gives nothing to send");
    Exchange message{.peer = flow.destination, .send = output, .channel = flow.send_channel};
    if (flow.destination != pp_.rank()) {
      flow.outgoing.start(pp_.exchange_async({&message, 1}));
      return;
    }
    PipelineAction next = action;
    next.chunk += action.kind == forward ? 1 : -1;
    Lane& incoming = flow_of(next).incoming;
    check(incoming.has_room(), "chunk ", next.chunk, " is behind by more than its buffers");
    message.receive = buffer_for(next);
    incoming.start(pp_.exchange_async({&message, 1}));
  }

  const std::vector<PipelineAction>& actions_;
  PipelineStage& stage_;
  ProcessGroup& pp_;
  int64_t num_virtual_;
  std::vector<Flow> forwards_;  // per chunk
  std::vector<Flow> backwards_;
  std::vector<size_t> last_of_chunk_;  // per chunk: its last action that is no forward
};

}  // namespace

void run_pipeline(const std::vector<PipelineAction>& actions, PipelineStage& stage,
                  ProcessGroup& pp, int64_t num_chunks) {
  PipelineRun(actions, stage, pp, num_chunks).run();
}

}  // namespace phalanx
