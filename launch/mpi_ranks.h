// One subcommand on all MPI ranks: start-up, a check that the ranks found each other, and an end
// that leaves no rank waiting.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace phalanx {

struct Ranks {
  int rank = 0;
  int size = 1;
  int local_rank = 0;  // among those of this machine
};

/// Initialises MPI and runs `body` on this rank. An exception is printed with its rank and ends all
/// ranks with the exit code for it (exit_codes.h). Returns body's exit code.
///
/// Threads of waiting ranks spin. With more ranks than cores start mpirun with
/// `--mca mpi_yield_when_idle 1`, or they take the cores from those that compute.
int run_on_ranks(const std::function<int(const Ranks&)>& body);

/// Collective. True, on all ranks, if any rank has problems; the lowest of them prints its own.
bool report_problems(const std::vector<std::string>& problems, const Ranks& ranks);

/// The least `value` of any rank. Collective; a single rank need not know MPI.
int least_of_ranks(int value, const Ranks& ranks);

/// How many ranks the launcher says it started, by what `variable` (like getenv) returns; 0 if it
/// says nothing. Slurm's number counts only inside a step, because a batch script has it too.
int64_t launched_ranks(const std::function<const char*(const char*)>& variable);

}  // namespace phalanx
