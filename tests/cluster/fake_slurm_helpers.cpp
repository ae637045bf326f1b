// Writing the scripts.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/cluster/fake_slurm.h"

namespace phalanx::test {

namespace fs = std::filesystem;

FakeSite::FakeSite() {
  std::string pattern = (fs::temp_directory_path() / "phalanx_site_XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
  folder_ = pattern;
  fs::create_directories(folder_ + "/bin");
  fs::create_directories(run_dir());
  if (const char* path = getenv("PATH")) old_path_ = path;
  setenv("PATH", (folder_ + "/bin").c_str(), 1);
}

FakeSite::~FakeSite() {
  setenv("PATH", old_path_.c_str(), 1);
  fs::remove_all(folder_);
}

void FakeSite::program(const std::string& name, const std::string& body) {
  const std::string path = folder_ + "/bin/" + name;
  write_text(path, fmt::format("#!/bin/sh\nFOLDER='{0}'\nRUN='{0}/run'\nPATH=/usr/bin:/bin\n"
                               "echo \"{1} $*\" >> \"$FOLDER/calls\"\n{2}\n",
                               folder_, name, body));
  fs::permissions(path, fs::perms::owner_all);
}

void FakeSite::remove_program(const std::string& name) {
  fs::remove(folder_ + "/bin/" + name);
}

void FakeSite::install_slurm() {
  program("sbatch", "n=$(grep -c '^sbatch' \"$FOLDER/calls\"); echo $((100 + n))");
  program("srun", "printf 'MPI plugin types are...\\n\\tnone\\n\\tpmi2\\n\\tpmix\\n'");
  program("ompi_info", "echo ompi:version:full:4.1.4; echo mca:pmix:ext3x:version:x");
  program("scontrol", R"(if [ "$2" = hostnames ]; then echo "$3" | tr , '\n'; exit 0; fi
if [ "$1" = requeue ]; then exit 0; fi
echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1)");
  program("squeue", "echo 10:00");
  program("scancel", "");
  std::string nodes;
  for (int node = 1; node <= 4; ++node)
    nodes += fmt::format("echo 'node{}|all|all*|2|4000|idle|1:00:00|1-infinite|(null)'\n", node);
  program("sinfo", nodes);
}

std::vector<std::string> FakeSite::calls() const {
  std::vector<std::string> lines;
  std::ifstream file(folder_ + "/calls");
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> FakeSite::calls(const std::string& program) const {
  std::vector<std::string> found;
  for (const std::string& line : calls())
    if (line.starts_with(program + " ")) found.push_back(line);
  return found;
}

std::vector<std::string> tiny_train_arguments(const std::string& run_dir) {
  return {"--mock-data",
          "--num-layers=2",
          "--hidden-size=32",
          "--ffn-hidden-size=48",
          "--num-attention-heads=2",
          "--seq-length=16",
          "--train-iters=10",
          "--global-batch-size=8",
          "--run-dir",
          run_dir};
}

std::string file_text(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}

std::string job_line(const std::string& id, const std::string& state, int restarts) {
  return fmt::format(
      "JobId={} JobName=run UserId=u(1) JobState={} Reason=None Dependency=(null) Requeue=1 "
      "Restarts={} ExitCode=0:0 RunTime=00:01:40 TimeLimit=00:10:00 "
      "SubmitTime=2026-01-31T10:00:00 StartTime=2026-01-31T10:00:30 EndTime=2026-01-31T10:10:30 "
      "PreemptTime=None NodeList=node[1-2] NumNodes=2 Command=x",
      id, state, restarts);
}

}  // namespace phalanx::test
