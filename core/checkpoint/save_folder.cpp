// The claim on SAVE and the renames that make, replace and remove checkpoints.
#include "core/checkpoint/save_folder.h"

#include <fmt/format.h>

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <system_error>

#include "core/checkpoint/fault_hook.h"
#include "core/checkpoint/file_lock.h"
#include "core/checkpoint/save_names.h"
#include "data/file_io.h"
#include "kernels/base/log.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;

constexpr int kRank = 0;  // of a job, that holds its SaveFolder

struct Claim {
  int64_t epoch = 0;
  std::string text;
};

/// What SAVE/epoch says; epoch 0 and no text if there is none.
Claim read_claim(const std::string& save) {
  const std::string path = save + "/" + kEpochFile;
  if (!entry_exists(path)) return {};
  Claim claim{.text = read_file(path)};
  const std::string number = claim.text.substr(0, claim.text.find_first_of(" \n"));
  claim.epoch = parse_number(number).value_or(-1);
  check_usage(claim.epoch >= 0, path, " begins with \"", number.substr(0, 40),
              "\" instead of the number of a job start; if no other job uses this folder, remove "
              "that file");
  return claim;
}

/// Number, and who has it. The random part tells apart two starts that took the same number where
/// there are no locks.
std::string claim_text(int64_t epoch) {
  char host[256] = "";
  ::gethostname(host, sizeof(host) - 1);
  std::random_device random;
  return fmt::format("{} process {} on {}, claim {:08x}{:08x}\n", epoch, ::getpid(), host, random(),
                     random());
}

void rename_entry(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::rename(from, to, error);
  check(!error, "cannot rename ", from, " to ", to, ": ", error.message());
}

void remove_entry(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) log_info("cannot remove {}: {}; remove it by hand", path, error.message());
}

/// `path`, or with ".2", ".3", ... what is not there yet.
std::string free_name(const std::string& path) {
  std::string name = path;
  for (int64_t number = 2; entry_exists(name); ++number) name = fmt::format("{}.{}", path, number);
  return name;
}

bool is_temporary(const std::string& name) {
  return name.starts_with(std::string(kEpochFile) + ".tmp.") ||
         name.starts_with(std::string(kLatestFile) + ".tmp.");
}

/// `newer`: how many checkpoints are newer. The newest itself stays whatever the retention says.
bool is_kept(int64_t iteration, int64_t newer, const Retention& retention) {
  if (retention.keep_last == 0 || newer < retention.keep_last) return true;
  return retention.retain_interval > 0 && iteration % retention.retain_interval == 0;
}

}  // namespace

SaveFolder::SaveFolder(std::string save) : save_(std::move(save)) {
  while (save_.size() > 1 && save_.back() == '/') save_.pop_back();
  check_usage(!save_.empty(), "the folder of checkpoints has no name");
  if (!entry_exists(save_)) {
    make_folders(save_);
    sync_folder(folder_of(save_));
  }
  {
    const FileLock lock(save_ + "/" + kLockFile);
    claim();
    tidy_up();
  }
  delete_garbage();
}

void SaveFolder::claim() {
  const int64_t last = read_claim(save_).epoch;
  check_usage(
      last < INT64_MAX, save_, "/", kEpochFile, " holds ", last,
      ", after which there is no number; if no other job uses this folder, remove that file");
  epoch_ = last + 1;
  claim_ = claim_text(epoch_);
  write_file(save_ + "/" + kEpochFile, claim_);
}

/// Everything here is of dead epochs. What they were writing is renamed before it is deleted, so
/// that a process that lives on finds no folder to make more files in.
void SaveFolder::tidy_up() const {
  for (const std::string& name : names_in(save_)) {
    if (is_temporary(name)) remove_entry(save_ + "/" + name);
    const auto leftover = parse_save_name(name);
    if (!leftover) continue;
    const std::string path = save_ + "/" + name;
    const std::string checkpoint = place(leftover->iteration, "");
    const bool replaced = leftover->kind == kReplaced;
    if (leftover->kind == kWriting || (replaced && is_complete(checkpoint))) {
      discard(leftover->iteration, path);
    } else if (replaced && !entry_exists(checkpoint)) {
      log_info("{} is back as {}, because its replacement was never finished", path, checkpoint);
      rename_entry(path, checkpoint);
    }
  }
  sync_folder(save_);
}

void SaveFolder::check_current() const {
  const Claim now = read_claim(save_);
  // Without a file nobody else has claimed the folder; `begin` puts it back.
  if (now.text == claim_ || now.text.empty()) return;
  const std::string who = now.text.substr(0, now.text.find('\n'));
  throw FencedError(fmt::format(
      "the folder of checkpoints {} belongs to another start of the run: epoch {} ({}), while this "
      "job has epoch {}. This job ends and changes nothing there any more",
      save_, now.epoch, who, epoch_));
}

/// SAVE/iter_N, or what one of this epoch is called while it is of `kind`.
std::string SaveFolder::place(int64_t iteration, const char* kind) const {
  const std::string folder = save_ + "/" + iteration_folder(iteration);
  return *kind == '\0' ? folder : fmt::format("{}.{}.{}", folder, kind, epoch_);
}

std::string SaveFolder::begin(int64_t iteration) {
  make_folders(save_);
  const FileLock lock(save_ + "/" + kLockFile);
  check_current();
  if (read_claim(save_).text.empty()) {
    log_info("{} was removed or emptied during the run; it is claimed anew", save_);
    write_file(save_ + "/" + kEpochFile, claim_);
  }
  std::string folder = place(iteration, kWriting);
  if (entry_exists(folder)) discard(iteration, folder);
  std::error_code error;
  fs::create_directory(folder, error);
  check(!error, "cannot make the folder ", folder, ": ", error.message());
  return folder;
}

void SaveFolder::commit(int64_t iteration) {
  fault_moment("commit", kRank);  // before the lock: a job that hangs here does not stop the next
  {
    const FileLock lock(save_ + "/" + kLockFile);
    check_current();
    publish(iteration);
    fault_moment("latest", kRank);
    write_file(save_ + "/" + kLatestFile, fmt::format("{}\n", iteration));
  }
  delete_garbage();
}

/// Gives what was written its name. A folder cannot be renamed over another, hence the detour of
/// the old one; only a whole checkpoint is ever called "replaced", so that it can be put back.
void SaveFolder::publish(int64_t iteration) const {
  const std::string written = place(iteration, kWriting);
  const std::string checkpoint = place(iteration, "");
  const std::string replaced = place(iteration, kReplaced);
  check(is_complete(written), written, " has no ", kCommittedFile,
        " file: only a whole checkpoint can be committed");
  sync_folder(written);
  const bool replaces = entry_exists(checkpoint);
  if (replaces) rename_entry(checkpoint, replaced);
  try {
    rename_entry(written, checkpoint);
  } catch (const Error&) {
    if (replaces) rename_entry(replaced, checkpoint);
    throw;
  }
  sync_folder(save_);
  if (replaces) discard(iteration, replaced);
}

void SaveFolder::abandon(int64_t iteration) noexcept {
  try {
    remove_entry(place(iteration, kWriting));
  } catch (const std::exception& error) {
    log_line(error.what());
  }
}

void SaveFolder::set_aside_damaged(int64_t iteration) {
  const FileLock lock(save_ + "/" + kLockFile);
  check_current();
  const std::string checkpoint = place(iteration, "");
  const std::string aside = free_name(checkpoint + ".damaged");
  rename_entry(checkpoint, aside);
  sync_folder(save_);
  log_info("{} is damaged and set aside as {}", checkpoint, aside);
}

std::vector<int64_t> SaveFolder::retire(const Retention& retention) {
  check(retention.keep_last >= 0 && retention.retain_interval >= 0, "keep_last ",
        retention.keep_last, " and retain_interval ", retention.retain_interval,
        " must not be negative");
  std::vector<int64_t> gone;
  {
    const FileLock lock(save_ + "/" + kLockFile);
    check_current();
    const int64_t latest = latest_iteration(save_);
    int64_t newer = 0;  // checkpoints newer than the one at hand
    for (const auto& [iteration, folder] : list_checkpoints(save_)) {
      if (is_kept(iteration, newer++, retention) || iteration == latest) continue;
      discard(iteration, folder);
      gone.push_back(iteration);
    }
    if (!gone.empty()) sync_folder(save_);
  }
  if (!gone.empty()) fault_moment("retire", kRank);
  delete_garbage();
  return gone;
}

/// Makes garbage of a folder of `iteration`: one rename, so that no half of it passes for a whole.
void SaveFolder::discard(int64_t iteration, const std::string& folder) const {
  rename_entry(folder, free_name(place(iteration, "") + "." + kDeleting));
}

/// Needs no lock: garbage is nobody's, and two that delete it do no harm.
void SaveFolder::delete_garbage() const {
  for (const std::string& name : names_in(save_)) {
    const auto found = parse_save_name(name);
    if (found && found->kind == kDeleting) remove_entry(save_ + "/" + name);
  }
}

}  // namespace phalanx
