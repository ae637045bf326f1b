// What the standard error of srun, mpirun and the ranks tells about the end of a start: which nodes
// were the first to fail, and why Slurm ended it.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace phalanx {

class ErrorLines {
 public:
  /// One line without its line break. Any text is safe.
  void add(const std::string& line);

  /// Where a rank was first killed or crashed. Those that die after it are ended by the launcher.
  const std::vector<std::string>& crashed_nodes() const { return crashed_; }
  /// Nodes that Slurm or mpirun lost.
  const std::vector<std::string>& lost_nodes() const { return lost_; }
  /// Nodes of the ranks that "phalanx: hang: rank N on NODE ..." names.
  const std::vector<std::string>& hung_nodes() const { return hung_; }
  /// The first exit code that a rank gave itself, where srun told it: srun's own is that of the
  /// ranks it killed afterwards, which is larger.
  std::optional<int> rank_exit_code() const { return rank_exit_code_; }
  /// "TIME LIMIT", "PREEMPTION", "NODE FAILURE", "JOB REQUEUE": why Slurm cancelled the step.
  const std::string& slurm_reason() const { return slurm_reason_; }
  /// The most telling line: a hang, a failed rank, a lost node.
  const std::string& text() const;

 private:
  bool add_hang(const std::string& line);
  bool add_lost_node(const std::string& line);
  bool add_task_end(const std::string& line);
  void add_slurm_reason(const std::string& line);

  std::vector<std::string> crashed_;
  std::vector<std::string> lost_;
  std::vector<std::string> hung_;
  std::optional<int> rank_exit_code_;
  std::string slurm_reason_;
  std::string hang_text_;
  std::string rank_text_;
  std::string launcher_text_;
  bool lost_daemon_ = false;  // mpirun names the node some lines later
};

/// "node[1-3,7],other" as single names. Small lists only, as in messages; what is no list is
/// itself.
std::vector<std::string> expand_node_list(const std::string& list);

}  // namespace phalanx
