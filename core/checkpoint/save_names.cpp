// Reading a folder of checkpoints: names, complete checkpoints, the latest iteration.
#include "core/checkpoint/save_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <system_error>

#include "core/checkpoint/manifest.h"
#include "core/checkpoint/save_folder.h"
#include "data/file_io.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "iter_";

fs::file_type type_of(const std::string& path) {
  std::error_code error;
  const fs::file_type type = fs::symlink_status(path, error).type();
  // not_found comes with an error code of its own; any other failure must not pass for absence.
  check(type != fs::file_type::none, "cannot look at ", path, ": ", error.message());
  return type;
}

}  // namespace

std::optional<int64_t> parse_number(std::string_view text) {
  int64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || number < 0 || text.front() == '-') return {};
  return number;
}

std::optional<SaveName> parse_save_name(std::string_view name) {
  const std::string_view folder = name.substr(0, name.find('.'));
  if (!folder.starts_with(kPrefix)) return {};
  const auto iteration = parse_number(folder.substr(kPrefix.size()));
  if (!iteration || iteration_folder(*iteration) != folder) return {};
  if (folder.size() == name.size()) return SaveName{*iteration, ""};
  const std::string_view rest = name.substr(folder.size() + 1);
  const std::string_view kind = rest.substr(0, rest.find('.'));
  const bool numbered = kind.size() < rest.size();
  if (kind.empty() || (numbered && !parse_number(rest.substr(kind.size() + 1)))) return {};
  return SaveName{*iteration, std::string(kind)};
}

bool entry_exists(const std::string& path) {
  return type_of(path) != fs::file_type::not_found;
}

bool is_complete(const std::string& folder) {
  return type_of(folder + "/" + kCommittedFile) == fs::file_type::regular;
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  if (error == std::errc::no_such_file_or_directory) return names;
  for (; !error && entry != fs::directory_iterator(); entry.increment(error))
    names.push_back(entry->path().filename().string());
  check_usage(!error, "cannot read the folder ", folder, ": ", error.message());
  return names;
}

std::string iteration_folder(int64_t iteration) {
  check(iteration >= 0, "a checkpoint of iteration ", iteration, " cannot be: it is negative");
  return fmt::format("{}{:07d}", kPrefix, iteration);
}

std::vector<SaveEntry> list_checkpoints(const std::string& save) {
  std::vector<SaveEntry> entries;
  for (const std::string& name : names_in(save)) {
    const auto found = parse_save_name(name);
    const std::string path = fmt::format("{}/{}", save, name);
    if (found && found->kind.empty() && is_complete(path))
      entries.push_back({found->iteration, path});
  }
  std::ranges::sort(entries, std::ranges::greater{}, &SaveEntry::iteration);
  return entries;
}

int64_t latest_iteration(const std::string& save) {
  const std::string path = save + "/" + kLatestFile;
  const fs::file_type type = type_of(path);
  if (type == fs::file_type::not_found) return -1;
  check_intact(type == fs::file_type::regular, path, " is not a file");
  const std::string text = read_file(path);
  const auto number = parse_number(text.substr(0, text.find_last_not_of(" \t\r\n") + 1));
  check_intact(number.has_value(), path, " holds \"", text.substr(0, 40),
               "\" instead of the number of an iteration");
  return *number;
}

}  // namespace phalanx
