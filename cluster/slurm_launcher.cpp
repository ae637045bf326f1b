// Probing and choosing the launcher, and its command line.
#include "cluster/slurm_launcher.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr double kProbeSeconds = 30;

/// Seconds that other ranks may go on after the first has ended well: rank 0 may still be writing.
constexpr int kWaitSeconds = 300;

bool has_component(const std::string& open_mpi, const std::string& name) {
  return open_mpi.find("mca:pmix:" + name) != std::string::npos;
}

/// Major version in "ompi:version:full:4.1.4"; 0 if it is not there.
int open_mpi_version(const std::string& open_mpi) {
  const std::string key = "ompi:version:full:";
  const auto at = open_mpi.find(key);
  return at == std::string::npos ? 0 : std::atoi(open_mpi.c_str() + at + key.size());
}

bool speaks_pmix(const std::string& open_mpi) {
  // ext2x, ext3x, ...: of the system; pmix3x, pmix4x: its own. From version 5 there is nothing
  // else.
  return open_mpi_version(open_mpi) >= 5 || has_component(open_mpi, "ext") ||
         has_component(open_mpi, "pmix");
}

/// "pmix" where Slurm has it, or one with a version in its name; "" if none.
std::string plugin_named(const std::vector<std::string>& plugins, const std::string& name) {
  if (std::ranges::find(plugins, name) != plugins.end()) return name;
  std::string best;
  for (const std::string& plugin : plugins)
    if (plugin.starts_with(name + "_v") && plugin > best) best = plugin;
  return best;
}

std::string listed(const std::vector<std::string>& words) {
  return words.empty() ? "nothing" : fmt::format("{}", fmt::join(words, ", "));
}

struct Choices {
  std::string pmix;
  std::string pmi2;
  std::string no_pmix;  // why not
  std::string no_pmi2;
};

Choices choices_of(const LauncherFacts& facts) {
  const bool open_mpi = !facts.open_mpi.empty();
  Choices choices{.pmix = plugin_named(facts.slurm_plugins, "pmix"),
                  .pmi2 = plugin_named(facts.slurm_plugins, "pmi2")};
  const std::string list = listed(facts.slurm_plugins);
  if (choices.pmix.empty())
    choices.no_pmix = fmt::format("srun --mpi=list has no pmix (it has {})", list);
  else if (open_mpi && !speaks_pmix(facts.open_mpi))
    choices.no_pmix = "Open MPI was built without PMIx";
  if (choices.pmi2.empty())
    choices.no_pmi2 = fmt::format("srun --mpi=list has no pmi2 (it has {})", list);
  else if (open_mpi && !has_component(facts.open_mpi, "s2"))
    choices.no_pmi2 = "Open MPI was built without Slurm's PMI2 (--with-pmi)";
  return choices;
}

ChosenLauncher choose_any(const Choices& choices, bool has_mpirun) {
  if (choices.no_pmix.empty())
    return {Launcher::srun_pmix, choices.pmix,
            fmt::format("srun --mpi={}: Slurm and MPI both speak PMIx", choices.pmix)};
  if (choices.no_pmi2.empty())
    return {Launcher::srun_pmi2, choices.pmi2,
            fmt::format("srun --mpi={}, because {}", choices.pmi2, choices.no_pmix)};
  check_usage(has_mpirun, "no way to start ranks was found: ", choices.no_pmix, "; ",
              choices.no_pmi2, "; and mpirun is not on PATH. Load the site's MPI module first");
  return {
      Launcher::mpirun, "",
      fmt::format("mpirun inside the job, because {} and {}", choices.no_pmix, choices.no_pmi2)};
}

}  // namespace

LauncherFacts probe_launchers(Slurm& slurm) {
  LauncherFacts facts;
  facts.slurm_known = !find_program("srun").empty();
  if (facts.slurm_known) facts.slurm_plugins = slurm.mpi_plugins();
  if (!find_program("ompi_info").empty())
    facts.open_mpi = run_command({"ompi_info", "--parsable"}, kProbeSeconds).output;
  facts.has_mpirun = !find_program("mpirun").empty();
  return facts;
}

ChosenLauncher choose_launcher(Launcher wanted, const LauncherFacts& facts) {
  if (!facts.slurm_known && wanted != Launcher::mpirun) {
    const Launcher likely = wanted == Launcher::automatic ? Launcher::srun_pmix : wanted;
    return {likely, likely == Launcher::srun_pmi2 ? "pmi2" : "pmix",
            "srun is not installed here: what the site speaks was not asked"};
  }
  const Choices choices = choices_of(facts);
  const std::string asked = fmt::format("--launcher {}", enum_name(wanted));
  switch (wanted) {
    case Launcher::automatic:
      return choose_any(choices, facts.has_mpirun);
    case Launcher::srun_pmix:
      check_usage(choices.no_pmix.empty(), asked, ": ", choices.no_pmix, "; try --launcher auto");
      return {wanted, choices.pmix, fmt::format("srun --mpi={}, as asked", choices.pmix)};
    case Launcher::srun_pmi2:
      check_usage(choices.no_pmi2.empty(), asked, ": ", choices.no_pmi2, "; try --launcher auto");
      return {wanted, choices.pmi2, fmt::format("srun --mpi={}, as asked", choices.pmi2)};
    case Launcher::mpirun:
      check_usage(facts.has_mpirun, asked, ": mpirun is not on PATH; load the site's MPI module");
      return {wanted, "", "mpirun inside the job, as asked"};
  }
  fail("no launcher");
}

std::vector<std::string> launch_words(Launcher launcher, const std::string& mpi_plugin,
                                      const LaunchShape& shape) {
  const int64_t ranks = shape.nodes * shape.ranks_per_node;
  if (launcher == Launcher::mpirun) {
    std::vector<std::string> words{"mpirun", "-n", std::to_string(ranks), "--map-by",
                                   fmt::format("ppr:{}:node", shape.ranks_per_node)};
    // Ranks that compute with threads must not be tied to one core each.
    words.insert(words.end(), {"--bind-to", "none"});
    if (shape.overcommit) words.emplace_back("--oversubscribe");
    std::string hosts;  // "node1:8,node2:8": so many ranks may be on each
    for (const std::string& name : shape.node_names)
      hosts += fmt::format("{}{}:{}", hosts.empty() ? "" : ",", name, shape.ranks_per_node);
    if (!hosts.empty()) words.insert(words.end(), {"--host", hosts});
    return words;
  }
  std::vector<std::string> words{
      "srun", "--mpi=" + mpi_plugin, fmt::format("--nodes={}", shape.nodes),
      fmt::format("--ntasks={}", ranks), fmt::format("--ntasks-per-node={}", shape.ranks_per_node),
      // A rank that fails ends all: the others would wait for it.
      "--kill-on-bad-exit=1", fmt::format("--wait={}", kWaitSeconds), "--input=none"};
  if (shape.overcommit)
    words.emplace_back("--overcommit");
  else if (shape.cpus_per_rank > 0)
    words.push_back(fmt::format("--cpus-per-task={}", shape.cpus_per_rank));
  if (!shape.node_names.empty())
    words.push_back(fmt::format("--nodelist={}", fmt::join(shape.node_names, ",")));
  return words;
}

}  // namespace phalanx
