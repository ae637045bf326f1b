// A site made of shell scripts: programs called sbatch, srun, scontrol, ... in a folder that is the
// whole PATH. Each notes its call and does what the test says.
#pragma once

#include <string>
#include <vector>

#include "cluster/submission.h"

namespace phalanx::test {

class FakeSite {
 public:
  /// A new empty folder with run/ and bin/; PATH is bin/ alone until this object goes.
  FakeSite();
  ~FakeSite();
  FakeSite(const FakeSite&) = delete;
  FakeSite& operator=(const FakeSite&) = delete;

  /// A cluster of four nodes of 2 processors and 4000 MiB, partition "all" (at most 1 hour), where
  /// sbatch answers 101, 102, ... and no job is known.
  void install_slurm();
  /// `body`: lines of sh; $FOLDER is this folder, RUN the run folder.
  void program(const std::string& name, const std::string& body);
  void remove_program(const std::string& name);

  const std::string& folder() const { return folder_; }
  std::string run_dir() const { return folder_ + "/run"; }
  /// One line per call: the program and its arguments.
  std::vector<std::string> calls() const;
  /// Those of one program.
  std::vector<std::string> calls(const std::string& program) const;

 private:
  std::string folder_;
  std::string old_path_;
};

/// Options of train of a tiny run in `run_dir`.
std::vector<std::string> tiny_train_arguments(const std::string& run_dir);

std::string file_text(const std::string& path);
void write_text(const std::string& path, const std::string& text);

/// One line of `scontrol -o show job`.
std::string job_line(const std::string& id, const std::string& state, int restarts = 0);

}  // namespace phalanx::test
