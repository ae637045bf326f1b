// A pipeline stage that computes y = 3x + v forwards and dx = 5dy + v backwards in virtual stage v,
// and dw = sum of x dy, all modulo 2^64. It ruins every buffer as early as its interface allows.
#include "tests/parallel/pipeline_checks.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <random>
#include <thread>

namespace phalanx::test {
namespace {

using enum PipelineActionKind;

constexpr int64_t kNumel = 700;  // 5600 bytes: too long for MPI to send without a receiver
constexpr int64_t kRuin = -77;
constexpr int64_t kNobody = -1;
using Values = std::vector<int64_t>;

int64_t first_input(int64_t micro_batch, int64_t i) {
  return micro_batch * 1001 + i + 1;
}
int64_t through(int64_t x, int64_t factor, int64_t v) {
  return static_cast<int64_t>(static_cast<uint64_t>(x) * static_cast<uint64_t>(factor) +
                              static_cast<uint64_t>(v));
}
/// Input of virtual stage v; v = num_virtual: the model's output.
int64_t expected_input(int64_t micro_batch, int64_t i, int64_t v) {
  int64_t x = first_input(micro_batch, i);
  for (int64_t u = 0; u < v; ++u) x = through(x, 3, u);
  return x;
}
/// Gradient of the output of virtual stage v; the loss gives each output itself as its gradient.
int64_t expected_gradient(int64_t micro_batch, int64_t i, int64_t v, int64_t num_virtual) {
  int64_t dy = expected_input(micro_batch, i, num_virtual);
  for (int64_t u = num_virtual - 1; u > v; --u) dy = through(dy, 5, u);
  return dy;
}

Tensor view_of(Values& values) {
  return cpu_tensor(values.data(), {kNumel});
}

/// Two buffers in turn for what one chunk receives in one direction.
struct Buffers {
  std::array<Values, 2> values{Values(kNumel), Values(kNumel)};
  std::array<int64_t, 2> owner{kNobody, kNobody};

  Tensor hand_out(int64_t micro_batch) {
    const auto place = static_cast<size_t>(micro_batch % 2);
    check(owner[place] == kNobody, "the buffer for micro-batch ", micro_batch,
          " is asked for while ", owner[place], " has it");
    owner[place] = micro_batch;
    std::ranges::fill(values[place], kRuin);
    return view_of(values[place]);
  }
  Values take(int64_t micro_batch) {
    const auto place = static_cast<size_t>(micro_batch % 2);
    check(owner[place] == micro_batch, "no buffer was handed out for micro-batch ", micro_batch);
    owner[place] = kNobody;
    return std::exchange(values[place], Values(kNumel, kRuin));
  }
};

/// The two tensors that a chunk last sent in one direction.
struct Outputs {
  std::array<Values, 2> values{Values(kNumel), Values(kNumel)};
  size_t count = 0;
  Values& next() { return values[count++ % 2]; }
  void ruin_next() { std::ranges::fill(values[count % 2], kRuin); }
};

struct Slot {
  int64_t micro_batch = kNobody;
  Values x;
  Values dy;
};

struct Chunk {
  Buffers forward_buffers;
  Buffers backward_buffers;
  Outputs outputs;
  Outputs gradients;
  std::vector<Slot> slots;
  int64_t weight_gradient = 0;
};

class IntegerStage final : public PipelineStage {
 public:
  IntegerStage(const ProcessGroup& pp, const std::vector<PipelineAction>& actions,
               const PipelineCase& run, BeforeAction before)
      : num_stages_(pp.size()),
        rank_(pp.rank()),
        num_virtual_(pp.size() * run.num_chunks),
        before_(std::move(before)),
        keeps_inputs_(!run.forward_only),
        chunks_(static_cast<size_t>(run.num_chunks)) {
    for (int64_t chunk = 0; chunk < run.num_chunks; ++chunk)
      at(chunk).slots.resize(static_cast<size_t>(max_in_flight(actions, chunk)));
  }

  Tensor forward_buffer(int64_t micro_batch, int64_t chunk) override {
    return at(chunk).forward_buffers.hand_out(micro_batch);
  }
  Tensor backward_buffer(int64_t micro_batch, int64_t chunk) override {
    return at(chunk).backward_buffers.hand_out(micro_batch);
  }

  Tensor forward(const PipelineAction& action) override {
    begin(action, false);
    Chunk& chunk = at(action.chunk);
    const int64_t v = virtual_stage(action.chunk);
    chunk.outputs.ruin_next();
    Values x(kNumel);
    for (int64_t i = 0; i < kNumel; ++i)
      x[static_cast<size_t>(i)] = first_input(action.micro_batch, i);
    if (v > 0) x = chunk.forward_buffers.take(action.micro_batch);
    for (int64_t i = 0; i < kNumel; ++i)
      expect(x, i, expected_input(action.micro_batch, i, v), action);
    Values& y = chunk.outputs.next();
    for (size_t i = 0; i < x.size(); ++i) y[i] = through(x[i], 3, v);
    keep(action, chunk, std::move(x), y);
    return v + 1 == num_virtual_ ? Tensor{} : view_of(y);
  }

  Tensor backward(const PipelineAction& action, bool last) override {
    begin(action, last);
    Chunk& chunk = at(action.chunk);
    const int64_t v = virtual_stage(action.chunk);
    chunk.gradients.ruin_next();
    Slot& slot = slot_of(action);
    if (v + 1 < num_virtual_) slot.dy = chunk.backward_buffers.take(action.micro_batch);
    for (int64_t i = 0; i < kNumel; ++i)
      expect(slot.dy, i, expected_gradient(action.micro_batch, i, v, num_virtual_), action);
    Values& dx = chunk.gradients.next();
    for (size_t i = 0; i < dx.size(); ++i) dx[i] = through(slot.dy[i], 5, v);
    if (action.kind == PipelineActionKind::backward) add_weight_gradient(action);
    return v == 0 ? Tensor{} : view_of(dx);
  }

  void backward_weight(const PipelineAction& action, bool last) override {
    begin(action, last);
    check(!slot_of(action).dy.empty(), "a weight half runs before its input half");
    add_weight_gradient(action);
  }

  void check_end(const std::vector<PipelineAction>& actions, const PipelineCase& run) const {
    check(ran_ == actions, "actions did not run in the order of the schedule");
    for (size_t i = 0; i < actions.size(); ++i) {
      const auto touches = [&](const PipelineAction& a) {
        return a.chunk == actions[i].chunk && a.kind != PipelineActionKind::forward;
      };
      const bool last =
          touches(actions[i]) &&
          std::none_of(actions.begin() + static_cast<ptrdiff_t>(i) + 1, actions.end(), touches);
      check(last_[i] == last, "action ", i, " was wrong about being the last of its chunk");
    }
    for (int64_t chunk = 0; chunk < run.num_chunks && !run.forward_only; ++chunk)
      check_weight_gradient(chunk, run.num_micro_batches);
  }

 private:
  Chunk& at(int64_t chunk) { return chunks_[static_cast<size_t>(chunk)]; }
  int64_t virtual_stage(int64_t chunk) const { return chunk * num_stages_ + rank_; }
  Slot& slot_of(const PipelineAction& action) {
    std::vector<Slot>& slots = at(action.chunk).slots;
    Slot& slot = slots[static_cast<size_t>(action.micro_batch) % slots.size()];
    check(slot.micro_batch == action.micro_batch, "the slot of micro-batch ", action.micro_batch,
          " holds ", slot.micro_batch);
    return slot;
  }

  void begin(const PipelineAction& action, bool last) {
    if (before_) before_(action);
    ran_.push_back(action);
    last_.push_back(last);
  }

  void expect(const Values& x, int64_t i, int64_t expected, const PipelineAction& action) const {
    check(x[static_cast<size_t>(i)] == expected, action_name(action.kind), " of micro-batch ",
          action.micro_batch, " in chunk ", action.chunk, " of rank ", rank_, " got ",
          x[static_cast<size_t>(i)], " at ", i, " instead of ", expected);
  }

  /// The loss's gradient of the last chunk's output is that output.
  void keep(const PipelineAction& action, Chunk& chunk, Values x, const Values& y) {
    if (!keeps_inputs_) return;
    Slot& slot = chunk.slots[static_cast<size_t>(action.micro_batch) % chunk.slots.size()];
    check(slot.micro_batch == kNobody, "micro-batch ", action.micro_batch, " takes the slot of ",
          slot.micro_batch);
    const bool at_end = virtual_stage(action.chunk) + 1 == num_virtual_;
    slot = {action.micro_batch, std::move(x), at_end ? y : Values{}};
  }

  void add_weight_gradient(const PipelineAction& action) {
    Slot& slot = slot_of(action);
    for (size_t i = 0; i < slot.x.size(); ++i)
      at(action.chunk).weight_gradient =
          through(slot.x[i], slot.dy[i], at(action.chunk).weight_gradient);
    slot = {};
  }

  void check_weight_gradient(int64_t chunk, int64_t num_micro_batches) const {
    const int64_t v = virtual_stage(chunk);
    int64_t expected = 0;
    for (int64_t m = 0; m < num_micro_batches; ++m)
      for (int64_t i = 0; i < kNumel; ++i)
        expected =
            through(expected_input(m, i, v), expected_gradient(m, i, v, num_virtual_), expected);
    const int64_t sum = chunks_[static_cast<size_t>(chunk)].weight_gradient;
    check(sum == expected, "weight gradient of virtual stage ", v, " is ", sum, " instead of ",
          expected);
  }

  int64_t num_stages_;
  int64_t rank_;
  int64_t num_virtual_;
  BeforeAction before_;
  bool keeps_inputs_;
  std::vector<Chunk> chunks_;
  std::vector<PipelineAction> ran_;
  std::vector<bool> last_;
};

/// Bytes that this rank sends: its chunks' outputs forwards and gradients backwards, m times, where
/// the neighbour is another rank.
int64_t bytes_of(const ProcessGroup& pp, const PipelineCase& run) {
  if (pp.size() == 1) return 0;
  int64_t boundaries = 0;
  const int64_t num_virtual = pp.size() * run.num_chunks;
  for (int64_t v = pp.rank(); v < num_virtual; v += pp.size()) {
    if (v + 1 < num_virtual) ++boundaries;
    if (v > 0 && !run.forward_only) ++boundaries;
  }
  return boundaries * run.num_micro_batches * kNumel * static_cast<int64_t>(sizeof(int64_t));
}

}  // namespace

std::vector<PipelineCase> pipeline_cases(int64_t num_stages, int64_t max_chunks) {
  using Kind = PipelineScheduleKind;
  std::vector<PipelineCase> cases;
  for (int64_t chunks = 1; chunks <= max_chunks; ++chunks)
    for (const int64_t count : {1, 2, 3, 4, 5, 6, 8, 12}) {
      cases.push_back({Kind::automatic, true, chunks, count});
      for (const Kind kind :
           {Kind::gpipe, Kind::one_forward_one_backward, Kind::interleaved, Kind::zero_bubble})
        if (validate_schedule(kind, num_stages, chunks, count).empty())
          cases.push_back({kind, false, chunks, count});
    }
  return cases;
}

std::vector<PipelineAction> actions_of(const ProcessGroup& pp, const PipelineCase& run) {
  const PipelineShape shape{pp.rank(), pp.size(), run.num_chunks, run.num_micro_batches};
  return run.forward_only ? make_forward_schedule(shape) : make_schedule(run.kind, shape);
}

void check_pipeline(ProcessGroup& pp, const PipelineCase& run, const BeforeAction& before_action) {
  PipelineExecutor executor(actions_of(pp, run), pp, run.num_chunks);
  for (int step = 0; step < 2; ++step) {
    IntegerStage stage(pp, executor.actions(), run, before_action);
    const int64_t before = pp.traffic(Collective::exchange).bytes;
    executor.run(stage);
    stage.check_end(executor.actions(), run);
    const int64_t sent = pp.traffic(Collective::exchange).bytes - before;
    check(sent == bytes_of(pp, run), "rank ", pp.rank(), " sent ", sent, " bytes instead of ",
          bytes_of(pp, run));
  }
}

BeforeAction random_sleep(uint64_t seed) {
  const auto random = std::make_shared<std::mt19937_64>(seed);
  return [random](const PipelineAction&) {
    std::this_thread::sleep_for(std::chrono::microseconds((*random)() % 200));
  };
}

}  // namespace phalanx::test
