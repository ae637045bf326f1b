// Schedules as data: every dependency is met, nothing runs twice, few micro-batches stay alive, and
// their bubbles are those of the literature.
#include "parallel/pipeline_schedule.h"

#include <fmt/format.h>

#include <gmock/gmock.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "parallel/pipeline_timing.h"

namespace phalanx {
namespace {

using enum PipelineActionKind;
using Kind = PipelineScheduleKind;
constexpr Kind kKinds[] = {Kind::gpipe, Kind::one_forward_one_backward, Kind::interleaved,
                           Kind::zero_bubble};

using Visit = std::function<void(Kind, const PipelineShape&)>;

/// All legal schedules up to 8 ranks, 4 chunks and 16 micro-batches.
void for_all_schedules(const Visit& visit) {
  for (const Kind kind : kKinds)
    for (int64_t stages = 1; stages <= 8; ++stages)
      for (int64_t chunks = 1; chunks <= 4; ++chunks)
        for (int64_t count = 1; count <= 16; ++count)
          if (validate_schedule(kind, stages, chunks, count).empty())
            visit(kind, {.num_stages = stages, .num_chunks = chunks, .num_micro_batches = count});
}

std::string name_of(Kind kind, const PipelineShape& shape) {
  return fmt::format("{}: {} stages, {} chunks, {} micro-batches", enum_name(kind),
                     shape.num_stages, shape.num_chunks, shape.num_micro_batches);
}

std::vector<PipelineCosts> equal_costs(const PipelineShape& shape, const PipelineCosts& costs) {
  return std::vector<PipelineCosts>(static_cast<size_t>(shape.num_stages * shape.num_chunks),
                                    costs);
}

/// Each micro-batch of each chunk: a forward, then a backward or its two halves in order.
void expect_complete(const std::vector<PipelineAction>& actions, const PipelineShape& shape,
                     const std::string& name) {
  std::map<std::pair<int64_t, int64_t>, std::vector<PipelineActionKind>> kinds;
  for (const PipelineAction& action : actions)
    kinds[{action.chunk, action.micro_batch}].push_back(action.kind);
  ASSERT_EQ(static_cast<int64_t>(kinds.size()), shape.num_chunks * shape.num_micro_batches) << name;
  const std::vector<PipelineActionKind> whole{forward, backward};
  const std::vector<PipelineActionKind> halves{forward, backward_input, backward_weight};
  for (const auto& [place, order] : kinds) {
    ASSERT_TRUE(order == whole || order == halves) << name;
    ASSERT_TRUE(0 <= place.first && place.first < shape.num_chunks) << name;
    ASSERT_TRUE(0 <= place.second && place.second < shape.num_micro_batches) << name;
  }
}

/// Those alive at one time never share a slot.
void expect_slots_safe(const std::vector<PipelineAction>& actions, const PipelineShape& shape,
                       const std::string& name) {
  for (int64_t chunk = 0; chunk < shape.num_chunks; ++chunk) {
    const int64_t slots = max_in_flight(actions, chunk);
    std::set<int64_t> used;
    for (const PipelineAction& action : actions) {
      if (action.chunk != chunk || action.kind == backward_input) continue;
      if (action.kind == forward) {
        ASSERT_TRUE(used.insert(action.micro_batch % slots).second) << name;
      } else {
        ASSERT_EQ(used.erase(action.micro_batch % slots), 1) << name;
      }
    }
    ASSERT_TRUE(used.empty()) << name;
  }
}

TEST(PipelineSchedule, EveryActionRunsOnceInOrderInASlotOfItsOwn) {
  int64_t num_schedules = 0;
  for_all_schedules([&](Kind kind, const PipelineShape& shape) {
    for (const auto& actions : make_all_schedules(kind, shape)) {
      expect_complete(actions, shape, name_of(kind, shape));
      expect_slots_safe(actions, shape, name_of(kind, shape));
      ++num_schedules;
    }
  });
  EXPECT_GT(num_schedules, 3 * 8 * 16);
}

TEST(PipelineSchedule, NoneDeadlocks) {
  for_all_schedules([](Kind kind, const PipelineShape& shape) {
    const PipelineTiming timing =
        simulate_pipeline(make_all_schedules(kind, shape), equal_costs(shape, {}));
    const auto work = static_cast<double>(3 * shape.num_chunks * shape.num_micro_batches);
    for (const double busy : timing.busy) ASSERT_EQ(busy, work) << name_of(kind, shape);
  });
}

TEST(PipelineSchedule, MicroBatchesInFlight) {
  for_all_schedules([](Kind kind, const PipelineShape& shape) {
    const int64_t count = shape.num_micro_batches;
    const auto all = make_all_schedules(kind, shape);
    for (int64_t stage = 0; stage < shape.num_stages; ++stage) {
      const auto& actions = all[static_cast<size_t>(stage)];
      const std::string name = name_of(kind, shape);
      if (kind == Kind::gpipe) {
        ASSERT_EQ(max_in_flight(actions), count) << name;
      }
      if (kind == Kind::one_forward_one_backward) {
        ASSERT_EQ(max_in_flight(actions), std::min(shape.num_stages - stage, count)) << name;
      }
      // As many as the fullest rank of 1F1B.
      if (kind == Kind::zero_bubble) {
        ASSERT_EQ(max_in_flight(actions), std::min(shape.num_stages, count)) << name;
      }
      if (kind != Kind::interleaved) continue;
      int64_t in_flight = 0;  // Narayanan et al. 2021: warm-up and one more, over all chunks
      for (int64_t chunk = 0; chunk < shape.num_chunks; ++chunk)
        in_flight += max_in_flight(actions, chunk);
      const int64_t warm_up =
          2 * (shape.num_stages - stage - 1) + (shape.num_chunks - 1) * shape.num_stages;
      ASSERT_GE(in_flight, std::min(warm_up + 1, count * shape.num_chunks)) << name;
      ASSERT_LE(max_in_flight(actions, 0), 2 * shape.num_stages) << name;
    }
  });
}

TEST(PipelineSchedule, OneForwardOneBackwardDrawn) {
  const std::vector<PipelineAction> expected{{forward, 0, 0},  {forward, 1, 0},  {backward, 0, 0},
                                             {forward, 2, 0},  {backward, 1, 0}, {forward, 3, 0},
                                             {backward, 2, 0}, {backward, 3, 0}};
  EXPECT_EQ(make_schedule(Kind::automatic, {0, 2, 1, 4}), expected);
}

// Narayanan et al. 2021, figure 4, last of two ranks.
TEST(PipelineSchedule, InterleavedDrawn) {
  const std::vector<PipelineAction> expected{
      {forward, 0, 0}, {forward, 1, 0},  {forward, 0, 1},  {backward, 0, 1},
      {forward, 1, 1}, {backward, 1, 1}, {forward, 2, 0},  {backward, 0, 0},
      {forward, 3, 0}, {backward, 1, 0}, {forward, 2, 1},  {backward, 2, 1},
      {forward, 3, 1}, {backward, 3, 1}, {backward, 2, 0}, {backward, 3, 0}};
  EXPECT_EQ(make_schedule(Kind::automatic, {1, 2, 2, 4}), expected);
}

TEST(PipelineSchedule, ForwardOnlyRunsForAnyNumberOfMicroBatches) {
  for (int64_t stages = 1; stages <= 8; ++stages)
    for (int64_t chunks = 1; chunks <= 4; ++chunks)
      for (int64_t count = 1; count <= 16; ++count) {
        PipelineShape shape{0, stages, chunks, count};
        std::vector<std::vector<PipelineAction>> all;
        for (shape.stage = 0; shape.stage < stages; ++shape.stage)
          all.push_back(make_forward_schedule(shape));
        const PipelineTiming timing = simulate_pipeline(all, equal_costs(shape, {}));
        ASSERT_EQ(timing.busy[0], static_cast<double>(chunks * count));
        if (count % stages == 0) {
          ASSERT_EQ(timing.makespan, static_cast<double>(chunks * count + stages - 1));
        }
      }
}

TEST(PipelineSchedule, RefusalsNameTheFix) {
  using testing::ElementsAre;
  using testing::HasSubstr;
  EXPECT_THAT(validate_schedule(Kind::interleaved, 4, 2, 10),
              ElementsAre(testing::AllOf(HasSubstr("10 micro-batches"), HasSubstr("8 or 12"))));
  EXPECT_THAT(validate_schedule(Kind::automatic, 4, 2, 3), ElementsAre(HasSubstr("use 4")));
  for (const Kind kind : {Kind::gpipe, Kind::one_forward_one_backward, Kind::zero_bubble})
    EXPECT_THAT(validate_schedule(kind, 2, 3, 6),
                ElementsAre(testing::AllOf(HasSubstr(std::string(enum_name(kind))),
                                           HasSubstr("is 3; use 1"))));
  EXPECT_THAT(validate_schedule(Kind::interleaved, 2, 1, 4),
              ElementsAre(HasSubstr("use pipeline-schedule 1f1b")));
  EXPECT_EQ(validate_schedule(Kind::gpipe, 0, 1, 0).size(), 2U);
  EXPECT_THROW(make_schedule(Kind::interleaved, {0, 2, 2, 3}), UsageError);
  EXPECT_THROW(make_schedule(Kind::gpipe, {2, 2, 1, 1}), Error);
  EXPECT_EQ(max_in_flight({}), 0);
}

// Equal costs: GPipe and 1F1B idle (p - 1) / (m + p - 1) (Narayanan et al. 2021, section 2.2).
TEST(PipelineTiming, BubblesOfGpipeAndOneForwardOneBackward) {
  for_all_schedules([](Kind kind, const PipelineShape& shape) {
    if (kind != Kind::gpipe && kind != Kind::one_forward_one_backward) return;
    const PipelineTiming timing =
        simulate_pipeline(make_all_schedules(kind, shape), equal_costs(shape, {2, 3, 1}));
    const auto p = static_cast<double>(shape.num_stages);
    const auto m = static_cast<double>(shape.num_micro_batches);
    EXPECT_EQ(timing.makespan, (m + p - 1) * 6) << name_of(kind, shape);
    for (int64_t stage = 0; stage < shape.num_stages; ++stage)
      EXPECT_DOUBLE_EQ(timing.bubble_fraction(stage), 1 - m / (m + p - 1)) << name_of(kind, shape);
  });
}

// Interleaved: (p - 1) / v instead of p - 1 (the same, section 2.2), here in units of a chunk.
TEST(PipelineTiming, BubblesOfInterleaved) {
  for_all_schedules([](Kind kind, const PipelineShape& shape) {
    if (kind != Kind::interleaved) return;
    const PipelineTiming timing =
        simulate_pipeline(make_all_schedules(kind, shape), equal_costs(shape, {2, 1, 1}));
    const auto p = static_cast<double>(shape.num_stages);
    const auto work = static_cast<double>(shape.num_micro_batches * shape.num_chunks);
    EXPECT_EQ(timing.makespan, (work + p - 1) * 4) << name_of(kind, shape);
    EXPECT_DOUBLE_EQ(timing.bubble_fraction(), 1 - work / (work + p - 1)) << name_of(kind, shape);
  });
}

// ZB-H1: (p - 1)(F + B - W) (Qi et al. 2023, table 2), once the pipeline is full.
TEST(PipelineTiming, BubblesOfZeroBubble) {
  for_all_schedules([](Kind kind, const PipelineShape& shape) {
    if (kind != Kind::zero_bubble) return;
    const auto costs = equal_costs(shape, {1, 1, 1});
    const PipelineTiming timing = simulate_pipeline(make_all_schedules(kind, shape), costs);
    const double other =
        simulate_pipeline(make_all_schedules(Kind::one_forward_one_backward, shape), costs)
            .makespan;
    const auto p = static_cast<double>(shape.num_stages);
    const auto m = static_cast<double>(shape.num_micro_batches);
    if (shape.num_stages > 1) {
      EXPECT_LT(timing.makespan, other) << name_of(kind, shape);
    }
    if (m >= p) {
      EXPECT_EQ(timing.makespan, 3 * m + (p - 1)) << name_of(kind, shape);
    }
  });
}

TEST(PipelineTiming, UnevenStagesAndWhatCannotRun) {
  // One micro-batch passes through all: nothing overlaps.
  const auto all = make_all_schedules(Kind::one_forward_one_backward, {0, 3, 1, 1});
  const PipelineTiming timing = simulate_pipeline(all, {{1, 2, 3}, {4, 5, 6}, {7, 8, 9}});
  EXPECT_EQ(timing.makespan, 45);
  EXPECT_EQ(timing.busy, (std::vector<double>{6, 15, 24}));
  EXPECT_DOUBLE_EQ(timing.bubble_fraction(), 1 - 15.0 / 45);
  EXPECT_DOUBLE_EQ(timing.bubble_fraction(2), 1 - 24.0 / 45);
  const std::vector<std::vector<PipelineAction>> stuck{{{backward, 0, 0}, {forward, 0, 0}}};
  EXPECT_THAT([&] { simulate_pipeline(stuck, {{}}); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("backward of micro-batch 0")));
}

}  // namespace
}  // namespace phalanx
