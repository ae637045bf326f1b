// SaveFolder: the folder of all checkpoints of a run. What is in it, in which order, and who may
// change it: only the job that started last.
//
//   SAVE/iter_0001000                       a checkpoint; complete if it has COMMITTED
//   SAVE/iter_0001000.writing.EPOCH         being written by the job of that epoch
//   SAVE/iter_0001000.replaced.EPOCH        moved away for an instant, so that another can come
//   SAVE/iter_0001000.deleting[.NUMBER]     garbage that is being deleted
//   SAVE/iter_0001000.damaged[.NUMBER]      evidence, never touched again
//   SAVE/latest_checkpointed_iteration.txt  the iteration that was committed last
//   SAVE/epoch                              number of the last job start, and who that was
//   SAVE/lock                               empty; locked by whoever changes a name in SAVE
//
// The lock has a file of its own, because SAVE/epoch is replaced by rename, so that no crash leaves
// half of it, and a lock would stay with the file that was replaced. Names not in this list are
// left alone.
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

/// What `list_checkpoints` finds for one iteration.
struct SaveEntry {
  int64_t iteration = 0;
  std::string path;  // of the folder
};

/// Complete checkpoint folders (those with COMMITTED) of `save`, newest first. Reads only. Empty if
/// `save` does not exist; throws if it is there and cannot be read, because a run must not take
/// that for a fresh start.
std::vector<SaveEntry> list_checkpoints(const std::string& save);
/// The number in SAVE/latest_checkpointed_iteration.txt; -1 if there is no such file. Throws
/// CheckpointDamage if it holds anything else. After a crash or a damaged checkpoint it may name
/// one that is not the newest or not there; `list_checkpoints` is what counts.
int64_t latest_iteration(const std::string& save);

/// Which checkpoints stay.
struct Retention {
  int64_t keep_last = 0;        // this many of the newest; 0: all
  int64_t retain_interval = 0;  // and every iteration divisible by this; 0: none more
};

/// A claim on SAVE, held by one rank for all. Methods that change something hold the lock of SAVE
/// (released when its process dies), and throw FencedError, having changed nothing, if a later
/// start has claimed the folder. They throw Error if the lock cannot be had within a minute. One
/// thread at a time. A process that dies at any point leaves every complete checkpoint in its
/// place, or moved away so that the next SaveFolder puts it back.
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
  /// What `begin` made is whole, with COMMITTED, and its files are durable: renames it to
  /// SAVE/iter_0001000 (one that is there is moved away first and deleted afterwards), makes that
  /// durable, then replaces latest_checkpointed_iteration.txt.
  void commit(int64_t iteration);
  /// Removes what `begin` made. Never throws. Also a fenced job may do this: the folder is its own.
  void abandon(int64_t iteration) noexcept;
  /// Renames a damaged checkpoint to SAVE/iter_0001000.damaged, so that it is neither taken nor
  /// counted again. Its evidence stays.
  void set_aside_damaged(int64_t iteration);
  /// Deletes complete checkpoints that `retention` does not keep; never the newest, nor the one
  /// committed last (an earlier one after a step back). Returns the iterations that went. Each is
  /// renamed under the lock and deleted after, because deleting may take long; what could not be
  /// deleted is logged and tried again by the next `commit` or `retire`.
  std::vector<int64_t> retire(const Retention& retention);

 private:
  std::string place(int64_t iteration, const char* kind) const;
  void claim();
  void tidy_up() const;
  void publish(int64_t iteration) const;
  void discard(int64_t iteration, const std::string& folder) const;
  void delete_garbage() const;

  std::string save_;
  int64_t epoch_ = 0;
  std::string claim_;  // what this start wrote into SAVE/epoch
};

}  // namespace phalanx
