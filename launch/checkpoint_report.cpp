// Tables for people.
#include "launch/checkpoint_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "core/checkpoint/save_folder.h"
#include "core/train/config_changes.h"

namespace phalanx {
namespace {

constexpr char kListRow[] = "{:<26} {:<9} {:>10} {:>7} {:>6} {:>9} {:>11} {:<6} {:<10} {}";

std::string file_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

/// The folder that latest_checkpointed_iteration.txt names, or what is wrong with that file.
struct Latest {
  std::string folder;
  std::string problem;
};
Latest latest_of(const FoundCheckpoints& found) {
  if (found.save.empty()) return {};
  try {
    const int64_t iteration = latest_iteration(found.save);
    if (iteration < 0) return {.problem = "there is no latest_checkpointed_iteration.txt"};
    const std::string name = iteration_folder(iteration);
    if (std::ranges::any_of(found.folders, [&](const auto& f) { return file_name(f) == name; }))
      return {.folder = name};
    return {.problem = "latest_checkpointed_iteration.txt names " + name + ", which is not there"};
  } catch (const Error& error) {
    return {.problem = error.what()};
  }
}

std::string list_row(const std::string& folder, const CheckpointSummary& summary, bool latest) {
  const std::string name = file_name(folder) + (latest ? " <- latest" : "");
  const std::string status = summary.damage.empty() ? "complete" : "damaged";
  const std::string size = size_text(summary.bytes);
  if (!summary.manifest) return fmt::format("{:<26} {:<9} {:>10}\n", name, status, size);
  const Manifest& manifest = *summary.manifest;
  return fmt::format(kListRow, name, status, size, manifest.shards.size(), manifest.world_size,
                     manifest.counters.step, manifest.counters.consumed_samples,
                     dtype_name(manifest.dtype), summary.has_certificate ? "certified" : "-",
                     manifest.layout) +
         "\n";
}

std::string incomplete_text(const std::string& folder) {
  const std::string name = file_name(folder);
  const bool damaged = name.find(".damaged") != std::string::npos;
  return fmt::format(
      "{:<26} {}\n", name,
      damaged ? "set aside as damaged" : "incomplete: being made or deleted, or left");
}

/// "lr: 0.1 | 0.2" for the options that are harmless to a run that goes on, or for all others.
std::vector<std::string> changed_options(const Manifest& first, const Manifest& second,
                                         bool harmless) {
  const auto shown = [](const std::string& value) { return value.empty() ? "-" : value; };
  std::vector<std::string> list;
  for (const ConfigChange& change : config_changes(first.config_ini, second.config_ini))
    if ((change.kind == ConfigChange::Kind::harmless) == harmless)
      list.push_back(
          fmt::format("{}: {} | {}", change.name, shown(change.before), shown(change.now)));
  return list;
}

template <class T>
void add_difference(std::vector<std::string>& list, const char* name, const T& a, const T& b) {
  if (a != b) list.push_back(fmt::format("{}: {} | {}", name, a, b));
}

std::string section(const char* title, const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += "  " + line + "\n";
  return lines.empty() ? "" : std::string(title) + "\n" + text;
}

template <class Rows>
size_t name_width(const Rows& rows) {
  size_t width = 0;
  for (const auto& row : rows) width = std::max(width, row.name.size());
  return width;
}

}  // namespace

std::string size_text(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  auto size = static_cast<double>(bytes);
  size_t unit = 0;
  for (; size >= 999.5 && unit + 1 < std::size(kUnits); ++unit) size /= 1000;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.3g} {}", size, kUnits[unit]);
}

std::string list_text(const FoundCheckpoints& found, bool& any_damage) {
  const Latest latest = latest_of(found);
  std::string text = fmt::format(kListRow, "checkpoint", "status", "size", "shards", "ranks",
                                 "step", "samples", "dtype", "next step", "layout") +
                     "\n";
  for (const std::string& folder : found.folders) {
    const CheckpointSummary summary = summarise_checkpoint(folder);
    text += list_row(folder, summary, file_name(folder) == latest.folder);
    if (!summary.damage.empty()) text += "  damaged: " + summary.damage + "\n";
    any_damage = any_damage || !summary.damage.empty();
  }
  for (const std::string& folder : found.incomplete) text += incomplete_text(folder);
  return latest.problem.empty() ? text : text + latest.problem + "\n";
}

std::string scalars_text(const std::string& folder, const Manifest& manifest) {
  const auto row = [](const char* name, const auto& value) {
    return fmt::format("{:<18} {}\n", name, value);
  };
  const TrainCounters& counters = manifest.counters;
  int64_t elements = 0;
  for (const SavedTensor& tensor : manifest.tensors) elements += tensor.shape.numel();
  return row("checkpoint", folder) + row("step", counters.step) +
         row("consumed samples", counters.consumed_samples) +
         row("consumed tokens", counters.consumed_tokens) +
         row("skipped steps", counters.skipped_steps) +
         row("skipped in a row", counters.skipped_in_row) +
         row("optimizer updates", manifest.num_updates) +
         row("tokenizer hash", manifest.tokenizer_hash) +
         row("code version", manifest.code_version) + row("layout", manifest.layout) +
         row("ranks", manifest.world_size) + row("job start", manifest.epoch) +
         row("dtype", dtype_name(manifest.dtype)) + row("shards", manifest.shards.size()) +
         row("tensors", manifest.tensors.size()) + row("parameters", elements);
}

std::string statistics_text(const std::vector<TensorStatistics>& all) {
  const size_t width = name_width(all);
  std::string text = fmt::format("{:<{}} {:<16} {:>12} {:>12} {:>12} {:>8} {:>8}\n", "tensor",
                                 width, "shape", "mean", "rms", "max |x|", "NaN", "infinite");
  for (const TensorStatistics& one : all)
    text += fmt::format("{:<{}} {:<16} {:>12.5g} {:>12.5g} {:>12.5g} {:>8} {:>8}\n", one.name,
                        width, one.shape.to_string(), one.mean, one.rms, one.max_abs, one.num_nan,
                        one.num_infinite);
  return text;
}

std::vector<std::string> option_differences(const Manifest& first, const Manifest& second) {
  return changed_options(first, second, false);
}

std::vector<std::string> origin_differences(const Manifest& first, const Manifest& second) {
  std::vector<std::string> list = changed_options(first, second, true);
  add_difference(list, "layout", first.layout, second.layout);
  add_difference(list, "ranks", first.world_size, second.world_size);
  add_difference(list, "shards", first.shards.size(), second.shards.size());
  add_difference(list, "code version", first.code_version, second.code_version);
  add_difference(list, "job start", first.epoch, second.epoch);
  return list;
}

std::string difference_text(const CheckpointDifference& difference,
                            const std::vector<std::string>& options,
                            const std::vector<std::string>& origins) {
  std::string text =
      section("how they were run and written (no difference of what they hold)", origins) +
      section("options", options) + section("state", difference.scalars) +
      section("tensors only in the first", difference.only_first) +
      section("tensors only in the second", difference.only_second) +
      section("shapes", difference.shapes);
  if (!difference.tensors.empty()) {
    const size_t width = name_width(difference.tensors);
    text += fmt::format("{:<{}} {:>12} {:>16} {:>22}\n", "tensors that differ", width + 2,
                        "max |a-b|", "rms(a-b)/rms(a)", "differing elements");
    for (const TensorDifference& one : difference.tensors)
      text += fmt::format("  {:<{}} {:>12.5g} {:>16.5g} {:>22}\n", one.name, width, one.max_abs,
                          one.relative_rms,
                          fmt::format("{} of {}", one.num_differing, one.num_elements));
  }
  return text + fmt::format("{} equal in every bit, {} of them told by checksums without reading\n",
                            difference.num_equal, difference.num_equal_by_checksum);
}

}  // namespace phalanx
