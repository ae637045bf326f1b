// Exit codes of the program, for scripts that decide whether to start it again.
#pragma once

namespace phalanx {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;         // an error while running: may go well another time
inline constexpr int kExitUsage = 2;          // wrong options or input: will not go well again
inline constexpr int kExitLayoutDiffers = 3;  // --verify-layout found a difference
/// Loss or gradient was not finite for too many steps in a row. A start again goes on behind them.
inline constexpr int kExitDiverged = 73;
/// Nothing went on for --hang-timeout seconds: start it again to go on from the last checkpoint.
inline constexpr int kExitHung = 74;
/// Stopped before the last step, by a signal or --exit-duration-in-mins, with a durable checkpoint:
/// start it again to go on. EX_TEMPFAIL of sysexits.h.
inline constexpr int kExitStopped = 75;
/// A later start of the same job owns the save folder: do not start this one again.
inline constexpr int kExitFenced = 76;

}  // namespace phalanx
