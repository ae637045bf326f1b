// Telling checkpoints, folders of checkpoints and run folders apart.
#include "core/checkpoint/listing.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "core/checkpoint/save_folder.h"
#include "core/checkpoint/save_names.h"
#include "data/file_io.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;

bool is_folder(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

bool is_checkpoint(const std::string& path) {
  return parse_save_name(fs::path(path).filename().string()) ||
         file_exists(path + "/manifest.json") || file_exists(path + "/" + kCommittedFile);
}

FoundCheckpoints list_folder(const std::string& save) {
  FoundCheckpoints found{.save = save};
  std::vector<std::pair<int64_t, std::string>> whole;
  for (const std::string& name : names_in(save)) {
    const auto parsed = parse_save_name(name);
    if (!parsed) continue;
    const std::string path = (fs::path(save) / name).string();
    if (parsed->kind.empty())
      whole.emplace_back(parsed->iteration, path);
    else
      found.incomplete.push_back(path);
  }
  std::ranges::sort(whole);
  for (auto& [iteration, path] : whole) found.folders.push_back(std::move(path));
  std::ranges::sort(found.incomplete);
  return found;
}

}  // namespace

FoundCheckpoints find_checkpoints(const std::string& path) {
  std::string folder = path;
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  check_usage(is_folder(folder), "there is no folder ", path);
  if (is_checkpoint(folder)) return {.folders = {folder}};
  if (is_folder(folder + "/checkpoints")) folder += "/checkpoints";
  FoundCheckpoints found = list_folder(folder);
  check_usage(!found.folders.empty() || !found.incomplete.empty() ||
                  file_exists(folder + "/" + kLatestFile) || file_exists(folder + "/" + kEpochFile),
              folder,
              " holds no checkpoints; give an iter_ folder, a folder of these, or a run "
              "folder");
  return found;
}

std::string one_checkpoint(const std::string& path) {
  const FoundCheckpoints found = find_checkpoints(path);
  if (found.save.empty()) return found.folders.front();
  const std::vector<SaveEntry> complete = list_checkpoints(found.save);
  check_usage(!complete.empty(), found.save, " has no complete checkpoint");
  return complete.front().path;
}

CheckpointSummary summarise_checkpoint(const std::string& folder) {
  CheckpointSummary summary;
  for (const std::string& name : names_in(folder)) {
    const std::string file = fmt::format("{}/{}", folder, name);
    if (file_exists(file)) summary.bytes += file_bytes(file);
  }
  summary.has_certificate = file_exists(folder + "/next_step.json");
  try {
    summary.manifest = read_checkpoint_manifest(folder);
    const auto check_size = [&](const std::string& name, int64_t expected) {
      const std::string file = folder + "/" + name;
      check_intact(file_exists(file), name, " is missing");
      check_intact(file_bytes(file) == expected, name, ": expected ", expected, " bytes, found ",
                   file_bytes(file));
    };
    check_size("index.h5", summary.manifest->index_bytes);
    for (const SavedShard& shard : summary.manifest->shards) check_size(shard.file, shard.bytes);
  } catch (const Error& error) {
    summary.damage = error.what();
  }
  return summary;
}

}  // namespace phalanx
