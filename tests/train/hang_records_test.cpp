// Reading the records of a run whose ranks live, are silent, have ended or left nothing; the words
// of a process's state; how often is written; who becomes the doctor; native stacks.
#include "core/train/hang_records.h"

#include <gmock/gmock.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "core/run_files.h"
#include "core/train/hang_incident.h"
#include "core/train/hang_stacks.h"
#include "core/train/native_stacks.h"
#include "core/train/node_name.h"
#include "core/train/process_state.h"
#include "tests/train/tiny_run.h"

namespace phalanx {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;

HangTimes quick_times() {
  return {.timeout = milliseconds(1000),
          .heartbeat = milliseconds(50),
          .silence = milliseconds(150),
          .proof = milliseconds(400),
          .patience = milliseconds(5000),
          .stacks = milliseconds(2000),
          .end = milliseconds(5000)};
}

std::string run_folder(const std::string& name) {
  const std::string folder = fresh_folder(name);
  std::filesystem::create_directories(ranks_folder(folder));
  return folder;
}

TEST(HangTimes, RanksShareTheFileSystem) {
  // 200 writes a second of all ranks together.
  EXPECT_EQ(hang_times(seconds(600), 8).heartbeat, seconds(2));
  EXPECT_EQ(hang_times(seconds(600), 400).heartbeat, seconds(2));
  EXPECT_EQ(hang_times(seconds(600), 4000).heartbeat, seconds(20));
  EXPECT_EQ(hang_times(seconds(0), 8).heartbeat, seconds(2));
  // Short deadlines are for tests: the heart beats more often than the deadline.
  EXPECT_EQ(hang_times(seconds(4), 4).heartbeat, seconds(1));
  for (const int64_t world : {1, 100, 5000})
    EXPECT_GT(hang_times(seconds(60), world).proof, 2 * hang_times(seconds(60), world).heartbeat);
}

class Records : public testing::Test {
 protected:
  std::vector<RankState> read(int64_t world) const {
    return read_rank_states(run_, world, quick_times(), [this] { ++calls_; });
  }

  FlightOwner owner(int rank) const { return {.rank = rank, .world_size = 4, .node = node_name()}; }

  const std::string run_ = run_folder("records");
  mutable int calls_ = 0;
};

TEST_F(Records, WhoBeatsAnswersWhoEndedEndedWhoLeftNothingIsUnread) {
  { const FlightRecorder ended(flight_record_path(run_, 0), owner(0)); }
  FlightRecorder alive(flight_record_path(run_, 1), owner(1));
  std::ofstream(flight_record_path(run_, 2)) << "torn";
  const auto ranks = read(4);
  ASSERT_EQ(ranks.size(), 4U);
  EXPECT_EQ(ranks[0].life, RankLife::ended);
  EXPECT_EQ(ranks[1].life, RankLife::answers);
  EXPECT_EQ(ranks[1].record.owner.rank, 1);
  EXPECT_EQ(ranks[2].life, RankLife::unread);
  EXPECT_EQ(ranks[3].life, RankLife::unread);
}

TEST_F(Records, WhoDoesNotBeatIsSilentAndItsProcessIsLookedAt) {
  // Of a process of this node that does not beat: stopped at once.
  const pid_t child = fork();
  if (child == 0) {
    const FlightRecorder recorder(flight_record_path(run_, 0), owner(0));
    raise(SIGSTOP);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, WUNTRACED);
  ASSERT_TRUE(WIFSTOPPED(status));
  // Another rank waits for longer than the deadline, so that it may be a hang.
  std::this_thread::sleep_for(milliseconds(200));
  const auto ranks = read(1);
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  EXPECT_EQ(ranks[0].life, RankLife::silent);
  EXPECT_THAT(ranks[0].process, HasSubstr("is stopped"));
  EXPECT_GT(ranks[0].silent_seconds, 0.5) << "its heart was listened to for so long";
  EXPECT_GT(calls_, 5);
  EXPECT_THAT(process_state(child), "is gone");
}

TEST_F(Records, AHeartThatBeatsSlowlyOrWithAnotherClockLives) {
  FlightRecorder recorder(flight_record_path(run_, 0), owner(0));
  std::this_thread::sleep_for(milliseconds(200));  // silent by the reader's clock
  std::atomic<bool> done = false;
  std::thread heart([&] {
    std::this_thread::sleep_for(milliseconds(250));
    recorder.heartbeat();
    while (!done) std::this_thread::sleep_for(milliseconds(5));
  });
  const auto ranks = read(1);
  done = true;
  heart.join();
  EXPECT_EQ(ranks[0].life, RankLife::answers);
}

TEST_F(Records, IsAHangOnlyWhenNothingGoesOnInAnyRankThatAnswers) {
  constexpr int64_t kSecond = 1'000'000'000;
  std::vector<RankState> ranks(3);
  const auto set = [&](size_t rank, RankLife life, int64_t stalled_seconds, int64_t clock) {
    ranks[rank].life = life;
    ranks[rank].record.heartbeat_ns = clock * kSecond;
    ranks[rank].record.progress_ns = (clock - stalled_seconds) * kSecond;
  };
  set(0, RankLife::answers, 31, 5000);
  set(1, RankLife::answers, 30, 9000);  // clocks need not agree
  set(2, RankLife::answers, 30, 100);
  EXPECT_EQ(time_left(ranks, seconds(30)), seconds(0));
  set(1, RankLife::answers, 12, 9000);  // it reads, or computes
  EXPECT_EQ(time_left(ranks, seconds(30)), seconds(18));
  set(1, RankLife::silent, 12, 9000);
  EXPECT_EQ(time_left(ranks, seconds(30)), seconds(0));
  set(1, RankLife::ended, 12, 9000);
  EXPECT_EQ(time_left(ranks, seconds(30)), seconds(0));
}

TEST(ProcessState, InWords) {
  EXPECT_THAT(process_state_text("12 (a) name) T 1 2"), HasSubstr("is stopped"));
  EXPECT_THAT(process_state_text("12 (phalanx) D 1 2"), HasSubstr("in the kernel"));
  EXPECT_THAT(process_state_text("12 (phalanx) Z 1 2"), HasSubstr("has died"));
  EXPECT_THAT(process_state_text("12 (phalanx) S 1 2"), HasSubstr("is there"));
  EXPECT_THAT(process_state_text("12 (phal"), HasSubstr("state ?"));
  EXPECT_THAT(process_state(getpid()), HasSubstr("is there (state R"));
}

TEST(HangIncident, OneDoctorOfAll) {
  const std::string folder = fresh_folder("incident");
  constexpr int kRanks = 8;
  std::atomic<int> doctors = 0;
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < kRanks; ++rank)
    ranks.emplace_back([&] {
      HangIncident incident(folder, 77, seconds(60));
      if (incident.look() == HangIncident::Role::doctor) ++doctors;
    });
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(doctors, 1);
  HangIncident of_another_start(folder, 78, seconds(60));
  EXPECT_EQ(of_another_start.look(), HangIncident::Role::doctor);
}

TEST(HangIncident, AnnouncedOrWithdrawn) {
  const std::string folder = fresh_folder("announced");
  HangIncident doctor(folder, 1, seconds(60));
  HangIncident other(folder, 1, seconds(60));
  EXPECT_EQ(doctor.look(), HangIncident::Role::doctor);
  EXPECT_EQ(other.look(), HangIncident::Role::waits);
  EXPECT_EQ(doctor.look(), HangIncident::Role::doctor) << "it stays the doctor";
  other.withdraw();  // not its own
  EXPECT_EQ(other.look(), HangIncident::Role::waits);
  doctor.withdraw();
  EXPECT_EQ(other.look(), HangIncident::Role::doctor) << "the next one takes over";
  other.announce("phalanx: hang: ...\n");
  EXPECT_EQ(doctor.look(), HangIncident::Role::announced);
}

TEST(HangIncident, ADoctorThatStallsIsReplacedAndStaysSo) {
  const std::string folder = fresh_folder("takeover");
  HangIncident doctor(folder, 1, milliseconds(100));
  HangIncident other(folder, 1, milliseconds(100));
  EXPECT_EQ(doctor.look(), HangIncident::Role::doctor);
  EXPECT_EQ(other.look(), HangIncident::Role::waits);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(milliseconds(40));
    EXPECT_EQ(doctor.look(), HangIncident::Role::doctor);
    EXPECT_EQ(other.look(), HangIncident::Role::waits) << "the doctor lives";
  }
  std::this_thread::sleep_for(milliseconds(150));
  EXPECT_EQ(other.look(), HangIncident::Role::waits);
  EXPECT_EQ(other.look(), HangIncident::Role::doctor);
  EXPECT_EQ(doctor.look(), HangIncident::Role::waits) << "not two at once";
}

// Named with external linkage, so that the program exports it.
}  // namespace

__attribute__((noinline)) void a_function_that_hangs(const std::atomic<bool>& done) {
  while (!done) std::this_thread::sleep_for(milliseconds(1));
  asm volatile("");  // no tail call
}

namespace {

TEST(NativeStacks, OfAllThreadsWithTheirNames) {
  prepare_native_stacks();
  std::atomic<bool> done = false;
  std::thread hanging([&] {
    pthread_setname_np(pthread_self(), "hanging");
    a_function_that_hangs(done);
  });
  std::vector<ThreadStack> stacks;
  std::thread([&] {
    std::this_thread::sleep_for(milliseconds(50));
    stacks = native_stacks(milliseconds(2000));
  }).join();
  done = true;
  hanging.join();
  ASSERT_GE(stacks.size(), 2U);
  EXPECT_EQ(stacks[0].id, getpid()) << "the main thread comes first";
  for (const ThreadStack& stack : stacks) EXPECT_TRUE(stack.answered) << stack.name;
  const auto found = std::ranges::find(stacks, "hanging", &ThreadStack::name);
  ASSERT_NE(found, stacks.end());
  EXPECT_THAT(found->frames.at(0), HasSubstr("nanosleep")) << "not the signal handler";
  EXPECT_THAT(stacks_text(stacks), HasSubstr("hanging"));
}

TEST(NativeStacks, AThreadThatTakesNoSignalsDoesNotHoldUpTheOthers) {
  prepare_native_stacks();
  std::atomic<bool> done = false, blocks = false;
  std::thread deaf([&] {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    pthread_setname_np(pthread_self(), "deaf");
    blocks = true;
    a_function_that_hangs(done);
  });
  while (!blocks) std::this_thread::yield();
  const auto begin = std::chrono::steady_clock::now();
  const auto stacks = native_stacks(milliseconds(200));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(1500));
  done = true;
  deaf.join();
  const auto found = std::ranges::find(stacks, "deaf", &ThreadStack::name);
  ASSERT_NE(found, stacks.end());
  EXPECT_FALSE(found->answered);
  EXPECT_THAT(stacks_text(stacks), HasSubstr("takes no signal"));
}

TEST(HangStacks, OfThisStartOnlyAndTheSuspectsMainThread) {
  prepare_native_stacks();
  const std::string run = run_folder("stacks");
  StacksQuestion question{.run_dir = run, .attempt = 7, .patience = milliseconds(300)};
  std::vector<RankState> ranks(2);
  ranks[0].life = ranks[1].life = RankLife::answers;
  std::thread([&] { write_stacks(question, {.rank = 1, .world_size = 2, .node = "n"}); }).join();
  const std::vector<int64_t> suspects{1};
  const RankStacks stacks = gather_stacks(question, ranks, suspects);
  EXPECT_EQ(stacks.num_ranks, 1) << "rank 0 has written none";
  EXPECT_THAT(stacks.text, HasSubstr("phalanx: main thread of rank 1:\nphalanx:     #0 "));
  EXPECT_THAT(stacks.text, Not(HasSubstr("#12"))) << "twelve frames are enough";
  question.attempt = 8;
  EXPECT_EQ(gather_stacks(question, ranks, suspects).text, "");
}

TEST(HangStacks, TheFirstThreadsFramesOnly) {
  const std::string file =
      "native stacks of rank 1\n\nthread 1 phalanx (state S)\n  #0 a\n  #1 b\n\n"
      "thread 2 other (state S)\n  #0 c\n";
  EXPECT_EQ(first_frames(file), "phalanx:     #0 a\nphalanx:     #1 b\n");
  EXPECT_EQ(first_frames(""), "");
}

}  // namespace
}  // namespace phalanx
