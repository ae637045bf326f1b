// SaveFolder: the folder of all checkpoints of a run. What is in it, in which order, and who may
// change it: only the job that started last.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace phalanx {

/// A later start of the job owns the folder now: this one must end and touch nothing more.
class FencedError : public Error {
 public:
  using Error::Error;
};

/// "iter_0001000".
std::string iteration_folder(int64_t iteration);

/// What `SaveFolder::entries` finds for one iteration.
struct SaveEntry {
  int64_t iteration = 0;
  std::string path;  // of the folder
};

/// Complete checkpoint folders (those with COMMITTED) of `save`, newest first. Reads only. Empty if
/// `save` does not exist.
std::vector<SaveEntry> list_checkpoints(const std::string& save);
/// The number in SAVE/latest_checkpointed_iteration.txt; -1 if there is no such file. Throws
/// CheckpointDamage if it holds anything else.
int64_t latest_iteration(const std::string& save);

/// Which checkpoints stay.
struct Retention {
  int64_t keep_last = 0;        // this many of the newest; 0: all
  int64_t retain_interval = 0;  // and every iteration divisible by this; 0: none more
};

/// A claim on SAVE, held by one rank for all. Methods that change something take a lock on
/// SAVE/epoch (POSIX record lock, released when its process dies), and throw FencedError, having
/// changed nothing, if a later start has claimed the folder. One thread at a time.
class SaveFolder {
 public:
  /// Takes the next epoch: the number in SAVE/epoch plus one, written atomically. Makes the folder.
  /// Then tidies up what dead epochs left: folders they were writing or deleting are removed,
  /// and a checkpoint that was moved away to be replaced is put back if its successor never came.
  explicit SaveFolder(std::string save);

  const std::string& path() const { return save_; }
  int64_t epoch() const { return epoch_; }
  /// Throws FencedError with both epochs if a later start has claimed the folder. One small read.
  void check_current() const;

  /// The folder in which iteration `iteration` is to be written: SAVE/iter_0001000.writing.EPOCH,
  /// new and empty.
  std::string begin(int64_t iteration);
  /// What `begin` made is whole and durable: renames it to SAVE/iter_0001000 (one that is there is
  /// moved away first and deleted afterwards), makes that durable, then replaces
  /// latest_checkpointed_iteration.txt.
  void commit(int64_t iteration);
  /// Removes what `begin` made. Never throws.
  void abandon(int64_t iteration) noexcept;
  /// Renames a damaged checkpoint to SAVE/iter_0001000.damaged, so that it is neither taken nor
  /// counted again. Its evidence stays.
  void set_aside_damaged(int64_t iteration);
  /// Deletes complete checkpoints that `retention` does not keep; never the newest. Returns the
  /// iterations that went. Each is renamed under the lock and deleted after, because deleting may
  /// take long.
  std::vector<int64_t> retire(const Retention& retention);

 private:
  std::string save_;
  int64_t epoch_ = 0;
};

}  // namespace phalanx
