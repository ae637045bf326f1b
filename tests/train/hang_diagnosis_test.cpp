// Diagnoses of made-up records: who is named, and with which words.
#include "core/train/hang_diagnosis.h"

#include <gmock/gmock.h>

#include <chrono>

namespace phalanx {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kNow = 1'000'000 * kSecond;

template <size_t size>
void put(std::array<char, size>& field, const std::string& text) {
  std::copy(text.begin(), text.end(), field.begin());
}

/// Ranks that answer and have entered `collectives` of their groups so far.
class Hang {
 public:
  explicit Hang(int64_t world, const ParallelConfig& config = {}, int64_t ranks_per_node = 4)
      : mesh_(config, world), ranks_(static_cast<size_t>(world)) {
    for (size_t i = 0; i < ranks_.size(); ++i) {
      RankState& rank = ranks_[i];
      rank.life = RankLife::answers;
      rank.record.owner = {
          .rank = static_cast<int32_t>(i),
          .world_size = static_cast<int32_t>(world),
          .node = "node" + std::to_string(1 + static_cast<int64_t>(i) / ranks_per_node)};
      rank.record.process = 1000 + static_cast<int64_t>(i);
      rank.record.heartbeat_ns = kNow;
      rank.record.progress_ns = kNow - 31 * kSecond;
      rank.record.step = 12;
    }
  }

  RankState& operator[](int64_t rank) { return ranks_[static_cast<size_t>(rank)]; }

  /// Has entered that many collectives of the group, the last one of them `operation`.
  void entered(int64_t rank, const std::string& group, int64_t count,
               const std::string& operation = "all_reduce") {
    FlightGroup counts{};
    put(counts.name, group);
    counts.collectives = count;
    RankState& state = (*this)[rank];
    std::erase_if(state.record.groups,
                  [&](const FlightGroup& old) { return old.name == counts.name; });
    state.record.groups.push_back(counts);
    state.record.history.push_back(entry(FlightKind::collective, operation, group, count));
  }

  /// Is in a collective, or waits for one that it entered before.
  void waits(int64_t rank, const std::string& group, int64_t sequence,
             const std::string& operation = "all_reduce", int64_t seconds = 31,
             FlightKind kind = FlightKind::collective) {
    if (collectives_entered((*this)[rank].record, group) < sequence)
      entered(rank, group, sequence, operation);
    auto& record = (*this)[rank].record;
    if (kind == FlightKind::collective) record.history.pop_back();  // it has not ended
    FlightEntry open = entry(kind, operation, group, sequence);
    open.begin_ns = kNow - seconds * kSecond;
    record.open.push_back(open);
  }

  void waits_for_message(int64_t rank, const std::string& group, int peer, int64_t sequence = 17) {
    FlightEntry open = entry(FlightKind::exchange_wait, "exchange", group, sequence);
    open.peer = peer;
    open.begin_ns = kNow - 31 * kSecond;
    (*this)[rank].record.open.push_back(open);
  }

  void works(int64_t rank, FlightKind kind, const std::string& what, const std::string& where = "",
             int64_t seconds = 31) {
    FlightEntry open = entry(kind, what, "", 0);
    put(open.where, where);
    open.begin_ns = kNow - seconds * kSecond;
    (*this)[rank].record.open.push_back(open);
  }

  Diagnosis diagnosis() { return diagnose(ranks_, mesh_); }

 private:
  FlightEntry entry(FlightKind kind, const std::string& what, const std::string& group,
                    int64_t sequence) {
    FlightEntry made{};
    made.number = ++number_;
    made.kind = kind;
    made.sequence = sequence;
    made.peer = -1;
    made.begin_ns = kNow - 40 * kSecond;
    put(made.what, what);
    put(made.group, group);
    return made;
  }

  DeviceMesh mesh_;
  std::vector<RankState> ranks_;
  int64_t number_ = 0;
};

TEST(HangDiagnosis, TheSentenceOfTheIssue) {
  // dp x cp of two ranks that are four apart: 1 and 5.
  Hang hang(8, {.tensor_model_parallel_size = 4});
  for (int64_t rank = 0; rank < 8; ++rank) hang.entered(rank, "dp_cp", 411, "reduce_scatter");
  hang.waits(1, "dp_cp", 412, "reduce_scatter");
  hang.works(5, FlightKind::phase, "resume");
  hang.works(5, FlightKind::file, "reading", "/runs/a/shard_00004.h5", 30);
  const Diagnosis found = hang.diagnosis();
  EXPECT_THAT(found.sentences,
              ElementsAre("rank 5 on node2 has not entered reduce_scatter #412 of dp_cp (ranks 1, "
                          "5), in which rank 1 waits for 31 s; it is in `reading "
                          "/runs/a/shard_00004.h5` and in `resume` (step 12) for 30 s"));
  EXPECT_THAT(found.suspects, ElementsAre(5));
  EXPECT_THAT(found.nodes, ElementsAre("node2"));
}

TEST(HangDiagnosis, OneOfAllIsMissing) {
  Hang hang(4);
  for (const int64_t rank : {0, 1, 3}) hang.waits(rank, "world", 21);
  hang.entered(2, "world", 20);
  hang.works(2, FlightKind::phase, "evaluate");
  EXPECT_THAT(hang.diagnosis().sentences,
              ElementsAre("rank 2 on node1 has not entered all_reduce #21 of world (ranks 0-3), in "
                          "which ranks 0, 1, 3 wait for 31 s; it is in `evaluate` (step 12) for 31 "
                          "s"));
}

TEST(HangDiagnosis, WhoWaitsElsewhereIsNotToBlame) {
  // 0 and 1 wait for 2 in dp_cp, 2 waits for 3 in tp; 3 computes.
  Hang hang(4, {.tensor_model_parallel_size = 2});
  hang.waits(0, "world", 5);
  hang.waits(1, "world", 5);
  hang.waits(2, "tp", 9, "all_gather");
  hang.works(3, FlightKind::phase, "forward and backward");
  const Diagnosis found = hang.diagnosis();
  EXPECT_THAT(found.suspects, ElementsAre(3));
  ASSERT_EQ(found.sentences.size(), 1U);
  EXPECT_THAT(found.sentences[0], StartsWith("rank 3 on node1 has not entered all_reduce #5 of "
                                             "world (ranks 0-3), in which ranks 0, 1 wait"));
}

TEST(HangDiagnosis, WaitingForAnEarlierCollectiveCountsItsNumberNotTheNewest) {
  // Rank 0 has handed in #7 and #8 and waits for #7, which rank 1 has entered: #8 is what lacks.
  Hang hang(2);
  hang.entered(0, "dp_cp", 8, "all_gather");
  hang.waits(0, "dp_cp", 7, "reduce_scatter", 31, FlightKind::wait);
  hang.entered(1, "dp_cp", 6);
  hang.works(1, FlightKind::phase, "update");
  EXPECT_THAT(hang.diagnosis().sentences,
              ElementsAre(HasSubstr("has not entered reduce_scatter #7 of dp_cp")));
}

TEST(HangDiagnosis, AMessageThatDoesNotCome) {
  Hang hang(4, {.pipeline_model_parallel_size = 4}, 1);
  hang.waits_for_message(3, "pp", 2);
  hang.waits_for_message(2, "pp", 1);
  hang.works(1, FlightKind::file, "writing", "/runs/a/metrics.jsonl");
  hang.waits_for_message(0, "pp", 1);
  const Diagnosis found = hang.diagnosis();
  EXPECT_THAT(found.suspects, ElementsAre(1));
  EXPECT_THAT(found.sentences,
              ElementsAre(AllOf(StartsWith("rank 1 on node2 has not sent its message of exchange "
                                           "#17 of pp (ranks 0-3), in which rank"),
                                HasSubstr("`writing /runs/a/metrics.jsonl`"))));
}

TEST(HangDiagnosis, OfAPairTheOtherIsWaitedForEvenIfNoSenderIsNamed) {
  Hang hang(2, {.pipeline_model_parallel_size = 2});
  hang.waits_for_message(0, "pp", -1);
  hang.works(1, FlightKind::phase, "forward and backward");
  EXPECT_THAT(hang.diagnosis().suspects, ElementsAre(1));
}

TEST(HangDiagnosis, AProcessThatDoesNotAnswer) {
  Hang hang(4, {}, 1);
  for (const int64_t rank : {0, 1, 3}) hang.waits(rank, "world", 21);
  hang.entered(2, "world", 19);
  hang.works(2, FlightKind::phase, "forward and backward");
  hang[2].life = RankLife::silent;
  hang[2].silent_seconds = 12;
  EXPECT_THAT(hang.diagnosis().sentences,
              ElementsAre("rank 2 on node3 does not answer: it is stopped, dead, or its node is "
                          "gone; last seen in `forward and backward` (step 12); it is waited for "
                          "in all_reduce #21 of world (ranks 0-3), in which ranks 0, 1, 3 wait for "
                          "31 s; no heartbeat for 12 s"));
  hang[2].process = "is stopped (by SIGSTOP, or held by a debugger)";
  EXPECT_THAT(hang.diagnosis().sentences,
              ElementsAre(HasSubstr("does not answer: process 1002 is stopped (by SIGSTOP")));
}

TEST(HangDiagnosis, ASilentRankIsToBlameThoughItsRecordWaits) {
  Hang hang(2);
  hang.waits(0, "world", 21);
  hang.waits(1, "world", 21);  // stopped inside
  hang[1].life = RankLife::silent;
  EXPECT_THAT(hang.diagnosis().suspects, ElementsAre(1));
  EXPECT_THAT(hang.diagnosis().sentences, ElementsAre(HasSubstr("does not answer")));
}

TEST(HangDiagnosis, SilentRanksOfANodeShareASentence) {
  Hang hang(16, {}, 8);
  for (int64_t rank = 0; rank < 8; ++rank) hang.waits(rank, "world", 21);
  for (int64_t rank = 8; rank < 16; ++rank) {
    hang.entered(rank, "world", 20);
    hang[rank].life = RankLife::silent;
    hang[rank].silent_seconds = 10.0 + static_cast<double>(rank) / 8;
  }
  EXPECT_THAT(hang.diagnosis().sentences,
              ElementsAre(AllOf(StartsWith("ranks 8-15 on node2 do not answer"),
                                HasSubstr("no heartbeat for 12 s"))));
}

TEST(HangDiagnosis, WhoHasEndedIsNamedIfItIsWaitedFor) {
  Hang hang(2);
  hang.waits(0, "world", 21);
  hang.entered(1, "world", 20);
  hang[1].life = RankLife::ended;
  EXPECT_THAT(
      hang.diagnosis().sentences,
      ElementsAre(AllOf(HasSubstr("rank 1 on node1 has not entered"), HasSubstr("it has ended"))));
}

TEST(HangDiagnosis, ARecordThatCouldNotBeRead) {
  Hang hang(2);
  hang.waits(0, "world", 21);
  hang[1] = RankState{};
  EXPECT_THAT(hang.diagnosis().sentences,
              ElementsAre("rank 1 on an unknown node has left no flight record that could be "
                          "read"));
  EXPECT_THAT(hang.diagnosis().nodes, IsEmpty());
}

TEST(HangDiagnosis, DifferentOperationsUnderOneNumber) {
  Hang hang(4);
  for (const int64_t rank : {0, 1, 3}) hang.waits(rank, "world", 21);
  hang.waits(2, "world", 21, "barrier");
  const Diagnosis found = hang.diagnosis();
  EXPECT_THAT(found.sentences,
              ElementsAre("the ranks of world (ranks 0-3) disagree about the order of their "
                          "collectives: #21 is all_reduce for ranks 0, 1, 3 on node1 and barrier "
                          "for rank 2 on node1"));
  EXPECT_THAT(found.suspects, ElementsAre(0, 1, 2, 3));
}

TEST(HangDiagnosis, TheOrderIsComparedWithWhatAnotherHasEnteredBefore) {
  // Rank 1's #21 was a barrier that the library let it leave; it waits in #22 now.
  Hang hang(2);
  hang.waits(0, "world", 21);
  hang.entered(1, "world", 21, "barrier");
  hang.waits(1, "world", 22);
  EXPECT_THAT(hang.diagnosis().sentences, ElementsAre(HasSubstr("#21 is all_reduce for rank 0 on "
                                                                "node1 and barrier for rank 1")));
}

TEST(HangDiagnosis, ACircle) {
  Hang hang(4, {.tensor_model_parallel_size = 2});
  hang.waits(0, "tp", 4);
  hang.waits(1, "dp", 7, "all_gather");
  hang.waits(3, "tp", 9, "reduce_scatter");
  hang.waits(2, "dp", 3);
  const Diagnosis found = hang.diagnosis();
  EXPECT_THAT(found.sentences,
              ElementsAre("ranks wait for each other in a circle: rank 0 on node1 in all_reduce #4 "
                          "of tp for rank 1; rank 1 on node1 in all_gather #7 of dp for rank 3; "
                          "rank 3 on node1 in reduce_scatter #9 of tp for rank 2; rank 2 on node1 "
                          "in all_reduce #3 of dp for rank 0"));
  EXPECT_THAT(found.suspects, ElementsAre(0, 1, 2, 3));
}

TEST(HangDiagnosis, AllAreInTheSameCollective) {
  Hang hang(4);
  for (int64_t rank = 0; rank < 4; ++rank) hang.waits(rank, "world", 21);
  const Diagnosis found = hang.diagnosis();
  EXPECT_THAT(found.sentences,
              ElementsAre("all_reduce #21 of world (ranks 0-3), in which ranks 0-3 wait for 31 s, "
                          "does not end though all have entered it: is the network in order?"));
  EXPECT_THAT(found.suspects, IsEmpty());
}

TEST(HangDiagnosis, ARankAlone) {
  Hang hang(1);
  hang.works(0, FlightKind::phase, "forward and backward");
  EXPECT_THAT(hang.diagnosis().sentences,
              ElementsAre("rank 0 on node1 waits for no other rank; it is in `forward and "
                          "backward` (step 12) for 31 s"));
}

TEST(HangDiagnosis, NobodyWaitsTheRarestOccupationComesFirst) {
  Hang hang(8, {}, 8);
  for (int64_t rank = 0; rank < 8; ++rank)
    hang.works(rank, FlightKind::phase, rank == 6 ? "start the device" : "connect the ranks");
  EXPECT_THAT(hang.diagnosis().suspects, ElementsAre(6));
  EXPECT_THAT(hang.diagnosis().sentences,
              ElementsAre(StartsWith("rank 6 on node1 waits for no other rank; it is in `start"),
                          StartsWith("also ranks 0-5, 7 on node1 wait for no other rank; it is in "
                                     "`connect")));
}

TEST(HangDiagnosis, BetweenEntriesTheLastOneIsNamed) {
  Hang hang(2);
  hang.waits(0, "world", 21);
  hang.entered(1, "world", 20);
  EXPECT_THAT(hang.diagnosis().sentences,
              ElementsAre(HasSubstr("it has begun nothing since `all_reduce #20 of world` (step "
                                    "12) for 31 s")));
}

TEST(HangDiagnosis, CollectivesOfADeviceAreComparedByTheirNumbers) {
  Hang hang(4, {.tensor_model_parallel_size = 2});
  for (int64_t rank = 0; rank < 4; ++rank) {
    hang.entered(rank, "tp", 800 + rank / 2);  // another group's numbers are no matter
    hang.entered(rank, "dp_cp", rank == 3 ? 411 : 412);
    hang.works(rank, FlightKind::phase, "update");
  }
  EXPECT_THAT(hang.diagnosis().sentences,
              ElementsAre(StartsWith("rank 3 on node1 has entered 411 collectives of dp_cp (ranks "
                                     "1, 3), others 412; it is in `update`")));
}

TEST(HangDiagnosis, AnUnknownGroupStillHasAnAnswer) {
  Hang hang(2);
  hang.waits(0, "made up", 3);
  hang.waits(1, "made up", 3);
  EXPECT_THAT(hang.diagnosis().sentences.at(0), HasSubstr("all_reduce #3 of made up"));
}

TEST(HangDiagnosis, EightSentencesAndACount) {
  Hang hang(40, {}, 1);
  hang.waits(0, "world", 21);
  for (int64_t rank = 1; rank < 40; ++rank) {
    hang.entered(rank, "world", 20);
    hang.works(rank, FlightKind::file, "reading", "/runs/a/shard_" + std::to_string(rank));
  }
  const Diagnosis found = hang.diagnosis();
  ASSERT_EQ(found.sentences.size(), 9U);
  EXPECT_EQ(found.sentences.back(), "and 31 more: ranks 9-39");
  EXPECT_EQ(found.suspects.size(), 39U);
  EXPECT_EQ(found.nodes.size(), 39U);
}

TEST(HangDiagnosis, EveryKindOfGroupIsKnown) {
  const ParallelConfig config{.tensor_model_parallel_size = 2,
                              .pipeline_model_parallel_size = 2,
                              .context_parallel_size = 2,
                              .expert_model_parallel_size = 2};
  const DeviceMesh mesh(config, 16);
  GroupMembers members(mesh);
  EXPECT_THAT(members.of("tp", 5), ElementsAre(4, 5));
  EXPECT_THAT(members.of("cp", 5), ElementsAre(5, 7));
  EXPECT_THAT(members.of("dp", 5), ElementsAre(1, 5));
  EXPECT_THAT(members.of("dp_cp", 5), ElementsAre(1, 3, 5, 7));
  EXPECT_THAT(members.of("pp", 5), ElementsAre(5, 13));
  EXPECT_EQ(members.of("world", 5).size(), 16U);
  EXPECT_EQ(members.of("ep", 5), mesh.group_of(5, {MeshAxis::ep}));
  EXPECT_EQ(members.of("expert_dp", 9), mesh.group_of(9, {MeshAxis::expert_dp}));
  EXPECT_THAT(members.of("made up", 5), IsEmpty());
}

TEST(HangDiagnosis, ThousandsOfRanksTakeLittleTime) {
  constexpr int64_t kWorld = 8192;
  Hang hang(kWorld, {.tensor_model_parallel_size = 8, .pipeline_model_parallel_size = 8}, 8);
  // All wait for one, in groups of many kinds.
  constexpr int64_t kSuspect = 4321;
  for (int64_t rank = 0; rank < kWorld; ++rank) {
    if (rank == kSuspect) continue;
    if (rank / 8 == kSuspect / 8)
      hang.waits(rank, "tp", 9);
    else if (rank % 3 == 0)
      hang.waits(rank, "dp_cp", 30);
    else
      hang.waits(rank, "world", 21);
  }
  hang.works(kSuspect, FlightKind::phase, "forward and backward");
  const auto begin = std::chrono::steady_clock::now();
  const Diagnosis found = hang.diagnosis();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_THAT(found.suspects, ElementsAre(kSuspect));
  EXPECT_LT(seconds.count(), 5.0) << "a quadratic walk takes minutes";
}

TEST(HangDiagnosis, RanksAreWrittenShort) {
  const auto text = [](const std::vector<int64_t>& ranks) { return ranks_text(ranks); };
  EXPECT_EQ(text({}), "");
  EXPECT_EQ(text({4}), "4");
  EXPECT_EQ(text({4, 5}), "4, 5");
  EXPECT_EQ(text({4, 5, 6, 9}), "4-6, 9");
  std::vector<int64_t> odd;
  for (int64_t rank = 1; rank < 100; rank += 2) odd.push_back(rank);
  EXPECT_EQ(text(odd), "1, 3, 5, 7, 9, 11, 13, 15 and 42 more");
}

}  // namespace
}  // namespace phalanx
