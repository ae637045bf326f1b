// What Slurm's commands print, as values. Any text is safe to read.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cluster/slurm.h"

namespace phalanx {

/// The pieces of `text` between `separator`s, without blanks around them; empty ones left out.
std::vector<std::string> split_text(std::string_view text, char separator);

/// Seconds of a time limit as Slurm reads and prints it: "30" (minutes), "30:00", "4:00:00",
/// "1-12", "1-12:30", "1-12:30:00". 0 for "UNLIMITED" and "infinite"; empty if it is none of these.
std::optional<int64_t> parse_time_limit(const std::string& text);
/// The same as Slurm prints it: "1-12:00:00".
std::string time_limit_text(int64_t seconds);
/// Seconds since 1970 of "2026-01-31T23:59:00", local time; 0 for "Unknown", "N/A", "None".
double parse_clock_time(const std::string& text);
/// MiB of "180G", "4000M", "4000" (MiB), "1T", "500000K"; empty if it is none of these.
std::optional<int64_t> parse_memory(const std::string& text);

/// One line of `scontrol -o show job`.
SlurmJob parse_job(const std::string& line);

/// The format for `sinfo -h -N -o`, and one line of what it prints; empty if it is none.
inline constexpr const char* kNodeFormat = "%N|%R|%P|%c|%m|%T|%l|%s|%G";
std::optional<SlurmNode> parse_node(const std::string& line);

/// The names in what `srun --mpi=list` prints (some versions: to standard error).
std::vector<std::string> parse_mpi_list(const std::string& text);

}  // namespace phalanx
