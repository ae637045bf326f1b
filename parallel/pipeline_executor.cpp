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
  /// Waits for all that is under way and starts from anew.
  void end() {
    for (; num_used_ < num_started_; release()) wait();
    num_started_ = num_used_ = 0;
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
  void end() {
    incoming.end();
    outgoing.end();
  }
};

}  // namespace

struct PipelineExecutor::Impl {
  Impl(std::vector<PipelineAction> own_actions, ProcessGroup& group, int64_t num_chunks)
      : actions(std::move(own_actions)), pp(group), num_virtual(num_chunks * group.size()) {
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      forwards.push_back(make_flow(chunk, 1));
      backwards.push_back(make_flow(chunk, -1));
      last_of_chunk.push_back(actions.size());
    }
    for (size_t i = 0; i < actions.size(); ++i) {
      const int64_t chunk = actions[i].chunk;
      check(0 <= chunk && chunk < num_chunks, "a pipeline action in chunk ", chunk, " of ",
            num_chunks);
      if (actions[i].kind != backward_weight) flow_of(actions[i]).actions.push_back(actions[i]);
      if (actions[i].kind != forward) last_of_chunk[static_cast<size_t>(chunk)] = i;
    }
    open_channels();
  }

  void open_channels() {
    std::vector<ChannelEnd> ends;
    for (auto* flows : {&forwards, &backwards})
      for (const Flow& flow : *flows) {
        if (flow.receives && flow.source != pp.rank())
          ends.push_back({.peer = flow.source, .channel = flow.receive_channel, .sends = false});
        if (flow.sends && flow.destination != pp.rank())
          ends.push_back({.peer = flow.destination, .channel = flow.send_channel, .sends = true});
      }
    pp.open_channels(ends);
  }

  void run() {
    for (size_t i = 0; i < actions.size(); ++i) {
      post_receives();
      const bool last = last_of_chunk[static_cast<size_t>(actions[i].chunk)] == i;
      if (actions[i].kind == backward_weight) {
        stage->backward_weight(actions[i], last);
      } else {
        run_in_flow(actions[i], last);
      }
    }
    for (auto* flows : {&forwards, &backwards})
      for (Flow& flow : *flows) flow.end();
  }

  void drop_messages() {
    for (auto* flows : {&forwards, &backwards})
      for (Flow& flow : *flows) {
        flow.incoming = Lane();
        flow.outgoing = Lane();
      }
  }

  /// `step`: 1 forwards, -1 backwards. A message's channel is the virtual stage it goes to, twice,
  /// so that the two directions differ even where they join the same two ranks.
  Flow make_flow(int64_t chunk, int64_t step) const {
    const int64_t here = chunk * pp.size() + pp.rank();
    const int64_t before = here - step;
    const int64_t after = here + step;
    const int direction = step > 0 ? 0 : 1;
    const auto rank_of = [&](int64_t v) { return static_cast<int>((v + pp.size()) % pp.size()); };
    const auto inside = [&](int64_t v) { return 0 <= v && v < num_virtual; };
    return {.receives = inside(before),
            .sends = inside(after),
            .source = rank_of(before),
            .destination = rank_of(after),
            .receive_channel = static_cast<int>(2 * here) + direction,
            .send_channel = static_cast<int>(2 * after) + direction};
  }

  Flow& flow_of(const PipelineAction& action) {
    return (action.kind == forward ? forwards : backwards)[static_cast<size_t>(action.chunk)];
  }

  Tensor buffer_for(const PipelineAction& action) {
    return action.kind == forward ? stage->forward_buffer(action.micro_batch, action.chunk)
                                  : stage->backward_buffer(action.micro_batch, action.chunk);
  }

  /// As early as the buffers allow, so that messages travel while the rank computes. What comes
  /// from this rank itself is put there by `send`.
  void post_receives() {
    for (auto* flows : {&forwards, &backwards})
      for (Flow& flow : *flows)
        while (flow.receives && flow.source != pp.rank() && flow.incoming.has_room() &&
               flow.incoming.num_started() < flow.actions.size()) {
          const PipelineAction& action = flow.actions[flow.incoming.num_started()];
          const Exchange message{
              .peer = flow.source, .receive = buffer_for(action), .channel = flow.receive_channel};
          flow.incoming.start(pp.exchange_async({&message, 1}));
        }
  }

  void run_in_flow(const PipelineAction& action, bool last) {
    Flow& flow = flow_of(action);
    if (flow.receives) flow.incoming.wait();
    flow.outgoing.make_room();
    const Tensor output =
        action.kind == forward ? stage->forward(action) : stage->backward(action, last);
    if (flow.receives) flow.incoming.release();
    if (flow.sends) send(action, flow, output);
  }

  void send(const PipelineAction& action, Flow& flow, const Tensor& output) {
    check(static_cast<bool>(output), action_name(action.kind), " of micro-batch ",
          action.micro_batch, " in chunk ", action.chunk, " gives nothing to send");
    Exchange message{.peer = flow.destination, .send = output, .channel = flow.send_channel};
    if (flow.destination != pp.rank()) {
      flow.outgoing.start(pp.exchange_async({&message, 1}));
      return;
    }
    PipelineAction next = action;
    next.chunk += action.kind == forward ? 1 : -1;
    Lane& incoming = flow_of(next).incoming;
    check(incoming.has_room(), "chunk ", next.chunk, " is behind by more than its buffers");
    message.receive = buffer_for(next);
    incoming.start(pp.exchange_async({&message, 1}));
  }

  std::vector<PipelineAction> actions;
  ProcessGroup& pp;
  int64_t num_virtual;
  std::vector<Flow> forwards;  // per chunk
  std::vector<Flow> backwards;
  std::vector<size_t> last_of_chunk;  // per chunk: its last action that is no forward
  PipelineStage* stage = nullptr;     // of the run under way
};

PipelineExecutor::PipelineExecutor(std::vector<PipelineAction> actions, ProcessGroup& pp,
                                   int64_t num_chunks)
    : impl_(std::make_unique<Impl>(std::move(actions), pp, num_chunks)) {}
PipelineExecutor::~PipelineExecutor() = default;
PipelineExecutor::PipelineExecutor(PipelineExecutor&&) noexcept = default;
PipelineExecutor& PipelineExecutor::operator=(PipelineExecutor&&) noexcept = default;

const std::vector<PipelineAction>& PipelineExecutor::actions() const {
  return impl_->actions;
}

void PipelineExecutor::run(PipelineStage& stage) {
  impl_->stage = &stage;
  try {
    impl_->run();
  } catch (...) {
    impl_->drop_messages();  // now, because the stage and its buffers may not outlive this call
    throw;
  }
}

void run_pipeline(const std::vector<PipelineAction>& actions, PipelineStage& stage,
                  ProcessGroup& pp, int64_t num_chunks) {
  PipelineExecutor(actions, pp, num_chunks).run(stage);
}

}  // namespace phalanx
