// Version and commit, from a header that every build brings up to date.
#include "core/train/code_version.h"

#include <code_commit.h>  // generated

namespace phalanx {

std::string code_version() {
  const std::string commit = PHALANX_COMMIT;
  return std::string(PHALANX_VERSION) + (commit.empty() ? "" : " (" + commit + ")");
}

}  // namespace phalanx
