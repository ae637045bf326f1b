// The name of the node a process runs on, as all parts of the system say it.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <string>

namespace phalanx {

/// Slurm's name where there is one, because people and `--exclude` know nodes by it, and because
/// nodes of a test cluster share one host name. Else the host name up to its first dot.
inline std::string node_name() {
  if (const char* name = std::getenv("SLURMD_NODENAME"); name != nullptr && *name != '\0')
    return name;
  char name[256] = "localhost";
  gethostname(name, sizeof(name) - 1);
  const std::string full = name;
  return full.substr(0, full.find('.'));
}

}  // namespace phalanx
