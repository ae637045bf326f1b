// A hang doctor in a process of its own: that it ends even where nothing else answers any more.
// Whole runs: tests/checkpoint/hang_doctor.py.
#include "core/train/hang_doctor.h"

#include <gmock/gmock.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "core/exit_codes.h"
#include "core/run_files.h"
#include "core/train/ledger.h"
#include "core/train/node_name.h"
#include "tests/train/tiny_run.h"

namespace phalanx {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::AllOf;
using testing::HasSubstr;

constexpr int kAttempt = 7;

struct End {
  int code = -1;  // 128 + the signal if one ended it
  double seconds = 0;
  std::string said;
};

/// A rank alone, whose work is `work`. Killed if it has not ended after 30 s.
End run_rank(const std::string& run, const std::function<void()>& work,
             const std::function<void(int)>& end_job, seconds timeout = seconds(1)) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string errors = run + "/stderr";
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen(errors.c_str(), "w", stderr) == nullptr) _exit(99);
    const FlightOwner owner{.rank = 0, .world_size = 1, .node = node_name()};
    auto recorder = std::make_unique<FlightRecorder>(flight_record_path(run, 0), owner);
    const int64_t started = recorder->record().started_ns;
    {
      const HangDoctor doctor({.run_dir = run,
                               .owner = owner,
                               .mesh = DeviceMesh(ParallelConfig{}, 1),
                               .attempt = kAttempt,
                               .first_started_ns = started,
                               .timeout = timeout,
                               .end_job = end_job},
                              std::move(recorder));
      work();
    }
    _exit(0);
  }
  End end;
  int status = 0;
  const auto passed = [&] { return std::chrono::steady_clock::now() - begin; };
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (passed() > seconds(30)) kill(child, SIGKILL);
    std::this_thread::sleep_for(milliseconds(20));
  }
  end.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  end.seconds = std::chrono::duration<double>(passed()).count();
  std::ifstream file(errors);
  end.said = {std::istreambuf_iterator<char>(file), {}};
  return end;
}

std::string run_folder(const std::string& name) {
  const std::string folder = fresh_folder(name);
  std::filesystem::create_directories(ranks_folder(folder));
  return folder;
}

void sleep_long() {
  std::this_thread::sleep_for(seconds(60));
}

TEST(HangDoctor, NamesWhatHangsAndEndsTheJob) {
  const std::string run = run_folder("names");
  const auto work = [] {
    flight_step(3);
    const FlightRange range(flight_entry(FlightKind::file, "reading", "/data/text.bin"));
    sleep_long();
  };
  const End end = run_rank(run, work, [](int code) { _exit(code); });
  EXPECT_EQ(end.code, kExitHung);
  EXPECT_THAT(end.said, HasSubstr("phalanx: hang: rank 0 on " + node_name() +
                                  " waits for no other rank; it is in `reading /data/text.bin` "
                                  "(step 3) for "));
  const auto ledger = read_ledger(run);
  ASSERT_EQ(ledger.size(), 1U);
  EXPECT_EQ(ledger[0].at("event"), "hang");
  EXPECT_EQ(ledger[0].at("step"), 3);
  EXPECT_EQ(ledger[0].at("nodes"), nlohmann::json::array({node_name()}));
  EXPECT_THAT(ledger[0].at("text").get<std::string>(), HasSubstr("`reading /data/text.bin`"));
}

TEST(HangDoctor, EndsTheProcessIfTheLauncherDoesNot) {
  const End end = run_rank(run_folder("launcher"), sleep_long, [](int) { sleep_long(); });
  EXPECT_EQ(end.code, kExitHung);
  EXPECT_LT(end.seconds, 15);
}

TEST(HangDoctor, EndsThoughTheFileSystemDoesNotAnswer) {
  const std::string run = run_folder("files");
  // To open a pipe without a writer is to wait for ever, as for a server that has gone.
  ASSERT_EQ(mkfifo((ranks_folder(run) + "/hang_7.1").c_str(), 0600), 0);
  const End end = run_rank(run, sleep_long, [](int code) { _exit(code); });
  EXPECT_EQ(end.code, kExitHung);
  EXPECT_THAT(end.said, AllOf(HasSubstr("phalanx: hang: rank 0 on " + node_name()),
                              HasSubstr("its file system has not answered")));
}

TEST(HangDoctor, LetsWorkAloneInWhichAnythingGoesOn) {
  const auto work = [] {
    for (int i = 0; i < 12; ++i) {
      std::this_thread::sleep_for(milliseconds(150));
      flight_progress();
    }
  };
  const End end = run_rank(run_folder("alive"), work, [](int code) { _exit(code); });
  EXPECT_EQ(end.code, 0);
  EXPECT_EQ(end.said, "");
}

TEST(HangDoctor, TimeInWhichItWasStoppedDoesNotCount) {
  const std::string run = run_folder("suspended");
  const auto work = [] {
    const pid_t self = getpid();
    const pid_t waker = fork();
    if (waker == 0) {
      std::this_thread::sleep_for(seconds(4));
      kill(self, SIGCONT);
      _exit(0);
    }
    std::this_thread::sleep_for(milliseconds(500));  // it has begun to count
    kill(self, SIGSTOP);
    std::this_thread::sleep_for(milliseconds(1600));
    flight_progress();
  };
  const End end = run_rank(
      run, work, [](int code) { _exit(code); }, seconds(3));
  EXPECT_EQ(end.code, 0) << end.said;
  EXPECT_GT(end.seconds, 5);
}

TEST(HangDoctor, GoesByWhenAnotherStartHasTheFolder) {
  const std::string run = run_folder("replaced");
  const auto work = [&] {
    // Another start's record takes the place of this one's: it was begun at another time.
    const std::string path = flight_record_path(run, 0);
    std::ifstream file(path, std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(file), {}};
    constexpr size_t kStarted = 8 + 4 + 4 + 8;  // behind magic, rank, world size, process
    bytes[kStarted] ^= 1;
    std::filesystem::remove(path);
    std::ofstream(path, std::ios::binary) << bytes;
    std::this_thread::sleep_for(milliseconds(2500));
  };
  const End end = run_rank(run, work, [](int code) { _exit(code); });
  EXPECT_EQ(end.code, 0);
  EXPECT_THAT(end.said, HasSubstr("another start of the run has begun to write"));
}

TEST(HangDoctor, WithoutDeadlineTheRecordIsKept) {
  const std::string run = run_folder("off");
  const auto work = [] { std::this_thread::sleep_for(milliseconds(2200)); };
  const End end = run_rank(
      run, work, [](int code) { _exit(code); }, seconds(0));
  EXPECT_EQ(end.code, 0);
  const FlightRecord record = read_flight_record(flight_record_path(run, 0));
  EXPECT_TRUE(record.ended);
  EXPECT_GT(record.heartbeat_ns - record.progress_ns, 1'500'000'000);
}

}  // namespace
}  // namespace phalanx
