// SIGINT and SIGTERM as requests to stop at the next safe point.
#pragma once

namespace phalanx {

/// From now on the first SIGINT or SIGTERM sets stop_requested(); the second one kills.
void stop_on_signals();

}  // namespace phalanx
