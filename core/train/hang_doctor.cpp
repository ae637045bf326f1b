// The three threads, and the order in which a hung job ends.
#include "core/train/hang_doctor.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <mutex>
#include <thread>
#include <utility>

#include "core/exit_codes.h"
#include "core/run_files.h"
#include "core/train/hang_diagnosis.h"
#include "core/train/hang_incident.h"
#include "core/train/hang_records.h"
#include "core/train/hang_stacks.h"
#include "core/train/ledger.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kShort{200};         // between two looks of the watch at the clock
constexpr milliseconds kLeaveTaking{2000};  // for threads that a file system may hold

double in_seconds(milliseconds time) {
  return std::chrono::duration<double>(time).count();
}

/// Past stdio, whose lock a thread that hangs may hold.
void say(const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t written = write(STDERR_FILENO, text.data() + done, text.size() - done);
    if (written <= 0) return;
    done += static_cast<size_t>(written);
  }
}

std::string hang_lines(const std::vector<std::string>& sentences) {
  std::string text;
  for (const std::string& sentence : sentences) text += "phalanx: hang: " + sentence + "\n";
  return text;
}

}  // namespace

/// What the threads share; it lives as long as the last of them.
class HangDoctor::Ward {
 public:
  Ward(HangDoctorOptions options, std::unique_ptr<FlightRecorder> recorder)
      : options_(std::move(options)),
        times_(hang_times(options_.timeout, options_.owner.world_size)),
        recorder_(std::move(recorder)),
        incident_(ranks_folder(options_.run_dir), options_.attempt,
                  times_.patience + 4 * times_.heartbeat) {}

  static void start(const std::shared_ptr<Ward>& ward) {
    const auto run = [&](void (Ward::*work)()) {
      ++ward->num_threads_;
      std::thread([ward, work] {
        ((*ward).*work)();
        ward->leave();
      }).detach();
    };
    run(&Ward::beat);
    if (ward->options_.timeout.count() == 0) return;
    run(&Ward::watch);
    run(&Ward::attend);
  }

  void stop() {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
    changed_.wait_for(lock, kLeaveTaking, [&] { return num_threads_ == 0; });
  }

 private:
  /// False if the run has ended.
  bool pause(milliseconds time) {
    std::unique_lock lock(mutex_);
    return !changed_.wait_for(lock, time, [&] { return stopping_; });
  }

  void leave() {
    const std::lock_guard lock(mutex_);
    --num_threads_;
    changed_.notify_all();
  }

  /// The heart.
  void beat() {
    while (pause(times_.heartbeat)) recorder_->heartbeat();
  }

  /// The watch.
  void watch() {
    int64_t progress = 0;
    auto before = Clock::now();
    while (pause(kShort)) {
      const auto now = Clock::now();
      // A step of the clock far beyond the pause is time in which the process was stopped.
      const auto passed =
          std::min(std::chrono::duration_cast<milliseconds>(now - before), 2 * kShort);
      before = now;
      const int64_t last_progress = std::exchange(progress, recorder_->progress_ns());
      const bool goes_on = progress != last_progress;
      stalled_ = goes_on ? milliseconds(0) : stalled_.load() + passed;
      const auto doctor_silent = now - doctor_seen_.load();
      if (ending_ && now - doctor_seen_.load() > times_.end) end_now();
      if (!ending_ && stalled_.load() > times_.timeout + times_.patience + 2 * times_.heartbeat &&
          doctor_silent > times_.patience)
        end_without_files();
    }
  }

  void end_without_files() {
    const std::vector<std::string> sentences{fmt::format(
        "rank {} on {}: nothing has gone on for {:.0f} s, and for {:.0f} s its file system has not "
        "answered in {}",
        options_.owner.rank, options_.owner.node, in_seconds(stalled_), in_seconds(times_.patience),
        ranks_folder(options_.run_dir))};
    ending_ = true;
    // In a thread, because standard error may hang too; but the end is not to overtake it.
    const auto said = std::make_shared<std::promise<void>>();
    std::thread([said, lines = hang_lines(sentences)] {
      say(lines);
      said->set_value();
    }).detach();
    said->get_future().wait_for(times_.stacks);
    end_now();
  }

  [[noreturn]] void end_now() {
    std::thread(options_.end_job, kExitHung).detach();
    std::this_thread::sleep_for(times_.stacks);
    std::_Exit(kExitHung);
  }

  /// The doctor.
  void attend() {
    using enum HangIncident::Role;
    while (pause(times_.heartbeat)) {
      alive();
      if (retired_ && stalled_.load() >= 2 * times_.timeout) end_retired();
      if (retired_ || stalled_.load() < times_.timeout) {
        incident_.withdraw();
        continue;
      }
      const HangIncident::Role role = incident_.look();
      if (role == announced) end_as_patient();
      if (role == doctor && Clock::now() >= next_look_) examine();
    }
    incident_.withdraw();
  }

  void alive() { doctor_seen_ = Clock::now(); }

  void examine() {
    const auto ranks =
        read_rank_states(options_.run_dir, options_.owner.world_size, times_, [this] { alive(); });
    if (ranks[0].life != RankLife::unread &&
        ranks[0].record.started_ns != options_.first_started_ns)
      return retire();
    const bool unread = std::ranges::any_of(
        ranks, [](const RankState& rank) { return rank.life == RankLife::unread; });
    const auto left = std::chrono::duration_cast<milliseconds>(time_left(ranks, times_.timeout));
    // Whose record cannot be read may be at work: it is given twice the time.
    const bool wait_for_unread = unread && stalled_.load() < 2 * times_.timeout;
    // Not later, because a rank may have died since.
    next_look_ = Clock::now() + std::clamp(left, times_.heartbeat, 2 * times_.silence);
    if (left.count() > 0 || wait_for_unread || stalled_.load() < times_.timeout) return;
    if (pause(milliseconds(0))) end_as_doctor(ranks);
  }

  /// Records of others must end nobody. The checkpoints' fence decides who of the two goes on.
  void retire() {
    say(
        fmt::format("phalanx: rank {}: another start of the run has begun to write in {}; this one "
                    "goes on without hang doctor\n",
                    options_.owner.rank, ranks_folder(options_.run_dir)));
    retired_ = true;
    incident_.withdraw();
  }

  /// Rank 0, which alone is told that it is fenced off, can have ended without a word that reaches
  /// us: where Slurm has given up our node, nobody else ends what is left of a start.
  [[noreturn]] void end_retired() {
    say(fmt::format(
        "phalanx: rank {}: nothing has gone on for {:.0f} s, and another start has the run\n",
        options_.owner.rank, in_seconds(stalled_)));
    std::_Exit(kExitFenced);
  }

  [[noreturn]] void end_as_doctor(const std::vector<RankState>& ranks) {
    ending_ = true;
    const Diagnosis diagnosis = diagnose(ranks, options_.mesh);
    const std::string lines = hang_lines(diagnosis.sentences);
    say(fmt::format(
        "phalanx: nothing has gone on in any of {} rank(s) for {:.0f} s "
        "(--hang-timeout {}), step {}\n{}",
        ranks.size(), in_seconds(stalled_), options_.timeout.count(), recorder_->step(), lines));
    incident_.announce(lines);
    write_own_stacks();
    const RankStacks stacks = gather_stacks(stacks_question(), ranks, diagnosis.suspects);
    say(stacks.text);
    nlohmann::ordered_json record{{"text", fmt::format("{}", fmt::join(diagnosis.sentences, "\n"))},
                                  {"nodes", diagnosis.nodes},
                                  {"step", recorder_->step()}};
    Ledger(options_.run_dir).write("hang", record);
    say(
        fmt::format("phalanx: ending the job with exit code {}; records and native stacks of the "
                    "ranks are in {}\n",
                    kExitHung, ranks_folder(options_.run_dir)));
    std::fflush(stdout);
    end_now();
  }

  [[noreturn]] void end_as_patient() {
    ending_ = true;
    write_own_stacks();
    // The doctor ends the job. Whom that does not reach ends itself: no rank may stay.
    std::this_thread::sleep_for(times_.end);
    end_now();
  }

  StacksQuestion stacks_question() const {
    return {.run_dir = options_.run_dir, .attempt = options_.attempt, .patience = times_.stacks};
  }

  void write_own_stacks() { write_stacks(stacks_question(), options_.owner); }

  const HangDoctorOptions options_;
  const HangTimes times_;
  const std::unique_ptr<FlightRecorder> recorder_;
  std::mutex mutex_;  // over what follows, up to the empty line
  std::condition_variable changed_;
  bool stopping_ = false;
  int num_threads_ = 0;

  std::atomic<milliseconds> stalled_{milliseconds(0)};  // for so long nothing has gone on
  std::atomic<Clock::time_point> doctor_seen_{Clock::now()};
  std::atomic<bool> ending_{false};
  HangIncident incident_;  // of the doctor's thread, as all below
  bool retired_ = false;
  Clock::time_point next_look_{};  // the earliest time at which it can be a hang
};

HangDoctor::HangDoctor(HangDoctorOptions options, std::unique_ptr<FlightRecorder> recorder)
    : ward_(std::make_shared<Ward>(std::move(options), std::move(recorder))) {
  Ward::start(ward_);
}

HangDoctor::~HangDoctor() {
  ward_->stop();
}

}  // namespace phalanx
