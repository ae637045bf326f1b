// MPI around a subcommand.
#include "launch/mpi_ranks.h"

#include <mpi.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "core/checkpoint/save_folder.h"
#include "core/exit_codes.h"
#include "kernels/base/error.h"
#include "launch/options.h"
#include "parallel/mpi_process_group.h"

namespace phalanx {
namespace {

// N processes that each believe to be a world of one train N models and overwrite each other's
// files; it happens when the launcher and the MPI library do not speak the same protocol.
void check_world(const Ranks& ranks) {
  const int64_t launched = launched_ranks([](const char* name) { return std::getenv(name); });
  check_usage(launched == 0 || launched == ranks.size, "the launcher started ", launched,
              " ranks, but MPI sees ", ranks.size,
              "; start with the mpirun of the MPI library this program was built with, or with "
              "srun --mpi=pmix (srun --mpi=list shows what there is)");
}

int rank_on_machine() {
  const std::string world = "MPI_COMM_WORLD";
  MPI_Comm machine = MPI_COMM_NULL;
  int rank = 0;
  mpi_check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine),
            {world, "split by machine"});
  mpi_check(MPI_Comm_rank(machine, &rank), {world, "rank on the machine"});
  mpi_check(MPI_Comm_free(&machine), {world, "split by machine"});
  return rank;
}

[[noreturn]] void end_all_ranks(const Ranks& ranks, const char* message, int exit_code) {
  // All ranks usually fail alike at wrong input: rank 0 speaks first and ends the others.
  const bool alike = exit_code == kExitUsage && ranks.rank > 0;
  if (alike) std::this_thread::sleep_for(std::chrono::seconds(2));
  std::fflush(stdout);
  if (ranks.size > 1 && exit_code != kExitUsage)
    std::fprintf(stderr, "phalanx: rank %d of %d: %s\n", ranks.rank, ranks.size, message);
  else
    std::fprintf(stderr, "phalanx: %s\n", message);
  std::fflush(stderr);
  if (ranks.size > 1) MpiSession::abort(exit_code);
  std::_Exit(exit_code);
}

}  // namespace

int run_on_ranks(const std::function<int(const Ranks&)>& body) {
  MpiSession session(nullptr, nullptr);
  const Ranks ranks{
      .rank = session.rank(), .size = session.size(), .local_rank = rank_on_machine()};
  try {
    check_world(ranks);
    return body(ranks);
  } catch (const UsageError& error) {
    end_all_ranks(ranks, error.what(), kExitUsage);
  } catch (const FencedError& error) {
    end_all_ranks(ranks, error.what(), kExitFenced);
  } catch (const std::exception& error) {
    end_all_ranks(ranks, error.what(), kExitFailed);
  }
}

bool report_problems(const std::vector<std::string>& problems, const Ranks& ranks) {
  const int lowest = least_of_ranks(problems.empty() ? ranks.size : ranks.rank, ranks);
  if (lowest == ranks.rank) std::fprintf(stderr, "phalanx: %s\n", problem_text(problems).c_str());
  return lowest < ranks.size;
}

int least_of_ranks(int value, const Ranks& ranks) {
  if (ranks.size == 1) return value;
  int least = value;
  const std::string world = "MPI_COMM_WORLD";
  mpi_check(MPI_Allreduce(&value, &least, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD),
            {world, "least of a number"});
  return least;
}

int64_t launched_ranks(const std::function<const char*(const char*)>& variable) {
  const auto number = [&](const char* name) -> int64_t {
    const char* text = variable(name);
    return text == nullptr ? 0 : std::strtoll(text, nullptr, 10);
  };
  // mpirun's own count comes first: under Slurm the step's tasks are its daemons, one per node.
  if (const int64_t open_mpi = number("OMPI_COMM_WORLD_SIZE"); open_mpi > 0) return open_mpi;
  if (const int64_t pmi = number("PMI_SIZE"); pmi > 0) return pmi;
  if (variable("SLURM_STEP_ID") == nullptr || variable("SLURM_PROCID") == nullptr) return 0;
  if (const int64_t tasks = number("SLURM_STEP_NUM_TASKS"); tasks > 0) return tasks;
  return number("SLURM_NTASKS");
}

}  // namespace phalanx
