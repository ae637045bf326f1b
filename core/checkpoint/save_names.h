// What the names in a folder of checkpoints mean. For save_folder.cpp; see save_folder.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx {

inline constexpr const char* kEpochFile = "epoch";
inline constexpr const char* kLockFile = "lock";
inline constexpr const char* kLatestFile = "latest_checkpointed_iteration.txt";
inline constexpr const char* kCommittedFile = "COMMITTED";
inline constexpr const char* kWriting = "writing";
inline constexpr const char* kReplaced = "replaced";
inline constexpr const char* kDeleting = "deleting";

/// iter_ITERATION[.KIND[.NUMBER]]
struct SaveName {
  int64_t iteration = 0;
  std::string kind;  // empty: a checkpoint
};

/// Nothing if `name` is not of this form, exactly as `iteration_folder` writes it.
std::optional<SaveName> parse_save_name(std::string_view name);
/// A whole decimal number from 0 without sign or blanks, else nothing.
std::optional<int64_t> parse_number(std::string_view text);

/// Whether there is anything of that name. Throws if that cannot be found out.
bool entry_exists(const std::string& path);
/// Whether `folder` has a COMMITTED file. Throws if that cannot be found out.
bool is_complete(const std::string& folder);
/// Names in `folder`, in no order; none if it does not exist. Throws UsageError if it cannot be
/// read.
std::vector<std::string> names_in(const std::string& folder);

}  // namespace phalanx
