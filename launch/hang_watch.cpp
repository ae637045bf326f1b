// Records of all ranks in one folder, or no doctor at all.
#include "launch/hang_watch.h"

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <limits>

#include "core/run_files.h"
#include "core/train/native_stacks.h"
#include "core/train/node_name.h"
#include "kernels/base/log.h"
#include "parallel/mpi_process_group.h"

namespace phalanx {
namespace {

/// Null, and the reason told, if it cannot be made.
std::unique_ptr<FlightRecorder> make_recorder(const std::string& run_dir, const Ranks& ranks) {
  try {
    std::filesystem::create_directories(ranks_folder(run_dir));
    return std::make_unique<FlightRecorder>(
        flight_record_path(run_dir, ranks.rank),
        FlightOwner{.rank = ranks.rank, .world_size = ranks.size, .node = node_name()});
  } catch (const std::exception& error) {
    log_info("rank {} keeps no flight record: {}", ranks.rank, error.what());
    return nullptr;
  }
}

int seconds_since_1970() {
  return static_cast<int>(
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::nanoseconds(nanoseconds_now()))
          .count());
}

/// When the record of rank 0 was begun, if this rank finds it and it is of this start; 0 if not.
/// `attempt`: a second of rank 0's clock just after that.
int64_t rank_0_started(const std::string& run_dir, int attempt) {
  constexpr int64_t kSecond = 1'000'000'000;
  try {
    const FlightRecord record = read_flight_record(flight_record_path(run_dir, 0));
    const int64_t made = record.started_ns / kSecond;
    return made <= attempt && attempt - made <= 60 && !record.ended ? record.started_ns : 0;
  } catch (const std::exception&) {
    return 0;
  }
}

}  // namespace

std::unique_ptr<HangDoctor> watch_ranks(const RunConfig& config, const Ranks& ranks,
                                        const DeviceMesh& mesh) {
  const std::string& run_dir = config.training.run_dir;
  if (run_dir.empty()) return nullptr;  // the run itself says that it needs one
  auto recorder = make_recorder(run_dir, ranks);
  const bool all_have = least_of_ranks(recorder != nullptr ? 1 : 0, ranks) == 1;
  const int attempt = least_of_ranks(
      ranks.rank == 0 ? seconds_since_1970() : std::numeric_limits<int>::max(), ranks);
  const int64_t started = all_have ? rank_0_started(run_dir, attempt) : 0;
  const bool shared = least_of_ranks(started > 0 ? 1 : 0, ranks) == 1;
  if (!shared) {
    if (ranks.rank == 0)
      log_info(
          "no hang doctor in this run: {} {}", ranks_folder(run_dir),
          all_have ? "is not the same folder on all nodes" : "is not to be used by every rank");
    return nullptr;
  }
  prepare_native_stacks();
  const auto end_job = [alone = ranks.size == 1](int code) {
    if (alone) std::_Exit(code);
    MpiSession::abort(code);
  };
  return std::make_unique<HangDoctor>(
      HangDoctorOptions{
          .run_dir = run_dir,
          .owner = {.rank = ranks.rank, .world_size = ranks.size, .node = node_name()},
          .mesh = mesh,
          .attempt = attempt,
          .first_started_ns = started,
          .timeout = std::chrono::seconds(config.training.hang_timeout),
          .end_job = end_job},
      std::move(recorder));
}

}  // namespace phalanx
