// How ranks are started on this site: what Slurm and the MPI library both speak.
#pragma once

#include <string>
#include <vector>

#include "cluster/slurm.h"
#include "cluster/submit_options.h"

namespace phalanx {

/// What there is to choose from.
struct LauncherFacts {
  std::vector<std::string> slurm_plugins;  // of srun --mpi=list
  bool slurm_known = false;                // srun was asked
  std::string open_mpi;                    // `ompi_info --parsable`; empty: not installed
  bool has_mpirun = false;
};

struct ChosenLauncher {
  Launcher launcher = Launcher::automatic;
  std::string mpi_plugin;  // for srun --mpi=
  std::string reason;      // one sentence for the user
};

/// Asks srun and ompi_info. Without srun on PATH nothing is known of Slurm.
LauncherFacts probe_launchers(Slurm& slurm);

/// `wanted` if the site has it, the best there is for `automatic`: PMIx before PMI2, because Open
/// MPI speaks it wherever it was built against PMIx, and either before mpirun, because then Slurm
/// itself starts, binds and ends the ranks. Throws UsageError with what was found if none will do.
ChosenLauncher choose_launcher(Launcher wanted, const LauncherFacts& facts);

/// How many of what `launch_words` starts, and where.
struct LaunchShape {
  int64_t nodes = 1;
  int64_t ranks_per_node = 1;
  int64_t cpus_per_rank = 0;            // 0: Slurm's default
  bool overcommit = false;              // more ranks than processors
  std::vector<std::string> node_names;  // of which nodes; empty: of all that were allocated
};

/// The words before the program that start it on all ranks.
std::vector<std::string> launch_words(Launcher launcher, const std::string& mpi_plugin,
                                      const LaunchShape& shape);

}  // namespace phalanx
