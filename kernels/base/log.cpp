// Log lines for people.
#include "kernels/base/log.h"

#include <unistd.h>

#include <string>

namespace phalanx {

void log_line(std::string_view text) {
  std::string line = "phalanx: ";
  line.append(text).push_back('\n');
  // A lost log line is no reason to stop, hence the ignored result.
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace phalanx
