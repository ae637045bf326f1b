// What the kernel says of a process of this node.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace phalanx {

/// Of the text of /proc/PID/stat: "is stopped (by SIGSTOP, or held by a debugger)", ...
std::string process_state_text(std::string_view stat);

/// The same of a living process; "is gone" if there is none of that number.
std::string process_state(int64_t process);

}  // namespace phalanx
