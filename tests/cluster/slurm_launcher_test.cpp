// Which launcher is taken where, and its command line.
#include "cluster/slurm_launcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "tests/cluster/fake_slurm.h"

namespace phalanx {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kExternalPmix[] = "ompi:version:full:4.1.4\nmca:pmix:ext3x:version:\"mca:2.1.0\"\n";
constexpr char kOnlyPmi2[] = "ompi:version:full:4.1.4\nmca:pmix:s2:version:\"mca:2.1.0\"\n";
constexpr char kNeither[] = "ompi:version:full:4.1.4\nmca:pmix:isolated:version:\"mca:2.1.0\"\n";
constexpr char kFive[] = "ompi:version:full:5.0.3\n";

struct Case {
  std::vector<std::string> plugins;
  std::string open_mpi;
  Launcher expected;
  std::string plugin;
};

TEST(Launcher, BestThatBothSidesSpeak) {
  const Case cases[] = {
      {{"none", "pmi2", "pmix", "pmix_v4"}, kExternalPmix, Launcher::srun_pmix, "pmix"},
      {{"none", "pmix_v3", "pmix_v4"}, kExternalPmix, Launcher::srun_pmix, "pmix_v4"},
      {{"none", "pmi2"}, kExternalPmix, Launcher::mpirun, ""},  // as Debian builds Open MPI
      {{"none", "pmi2", "pmix"}, kOnlyPmi2, Launcher::srun_pmi2, "pmi2"},
      {{"none", "pmi2", "pmix"}, kNeither, Launcher::mpirun, ""},
      {{"none"}, kExternalPmix, Launcher::mpirun, ""},
      {{"pmix"}, kFive, Launcher::srun_pmix, "pmix"},
      {{"pmix", "pmi2"}, "", Launcher::srun_pmix, "pmix"},  // not Open MPI
      {{"pmi2"}, "", Launcher::srun_pmi2, "pmi2"},
  };
  for (const Case& site : cases) {
    const LauncherFacts facts{.slurm_plugins = site.plugins,
                              .slurm_known = true,
                              .open_mpi = site.open_mpi,
                              .has_mpirun = true};
    const ChosenLauncher chosen = choose_launcher(Launcher::automatic, facts);
    EXPECT_EQ(chosen.launcher, site.expected) << chosen.reason;
    EXPECT_EQ(chosen.mpi_plugin, site.plugin);
    EXPECT_FALSE(chosen.reason.empty());
  }
}

TEST(Launcher, WhatIsNotThereIsRefusedByName) {
  const LauncherFacts facts{
      .slurm_plugins = {"none", "pmi2"}, .slurm_known = true, .open_mpi = kExternalPmix};
  for (const Launcher wanted :
       {Launcher::automatic, Launcher::srun_pmix, Launcher::srun_pmi2, Launcher::mpirun}) {
    try {
      choose_launcher(wanted, facts);
      ADD_FAILURE() << enum_name(wanted);
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), HasSubstr(wanted == Launcher::srun_pmi2 ? "PMI2" : "mpi"));
    }
  }
}

TEST(Launcher, ProbeAsksTheSite) {
  test::FakeSite site;
  Slurm slurm;
  EXPECT_FALSE(probe_launchers(slurm).slurm_known);
  site.install_slurm();
  site.program("mpirun", "");
  const LauncherFacts facts = probe_launchers(slurm);
  EXPECT_TRUE(facts.slurm_known);
  EXPECT_TRUE(facts.has_mpirun);
  EXPECT_THAT(facts.slurm_plugins, ElementsAre("none", "pmi2", "pmix"));
  EXPECT_EQ(choose_launcher(Launcher::automatic, facts).launcher, Launcher::srun_pmix);
}

TEST(Launcher, CommandLines) {
  EXPECT_THAT(
      launch_words(Launcher::srun_pmix, "pmix_v4", {.nodes = 2, .ranks_per_node = 8}),
      ElementsAre("srun", "--mpi=pmix_v4", "--nodes=2", "--ntasks=16", "--ntasks-per-node=8",
                  "--kill-on-bad-exit=1", "--wait=300", "--input=none"));
  const auto some =
      launch_words(Launcher::srun_pmix, "pmix",
                   {.nodes = 2, .ranks_per_node = 4, .cpus_per_rank = 3, .node_names = {"a", "c"}});
  for (const char* word : {"--cpus-per-task=3", "--nodelist=a,c"})
    EXPECT_THAT(some, Contains(word));
  const auto crowded = launch_words(Launcher::srun_pmix, "pmix",
                                    {.ranks_per_node = 4, .cpus_per_rank = 2, .overcommit = true});
  EXPECT_EQ(crowded.back(), "--overcommit");  // the two processors are those of the whole node
  const auto mpirun = launch_words(Launcher::mpirun, "",
                                   {.nodes = 2, .ranks_per_node = 4, .node_names = {"a", "c"}});
  EXPECT_THAT(mpirun, ElementsAre("mpirun", "-n", "8", "--map-by", "ppr:4:node", "--bind-to",
                                  "none", "--host", "a:4,c:4"));
}

}  // namespace
}  // namespace phalanx
