// From which checkpoints a start may go on, and which it must refuse.
#pragma once

#include <string>
#include <vector>

#include "core/checkpoint/manifest.h"
#include "core/checkpoint/save_folder.h"
#include "core/config.h"
#include "core/train/config_changes.h"

namespace phalanx {

/// What a run is, as far as its checkpoints are concerned.
struct RunIdentity {
  RunConfig config;        // with everything filled in
  std::string config_ini;  // as the user gave it
  std::string tokenizer_hash;
  std::string layout;         // "dp 2, tensor-model-parallel-size 2"
  int64_t order_samples = 0;  // that the data order is made for
};

/// The folder of a run's checkpoints.
std::string save_folder(const RunConfig& config);

/// Throws UsageError if the checkpoint at `path` is of another model, other data or another
/// tokenizer, with all differences that --allow-changed-options does not name. Returns all others.
std::vector<ConfigChange> check_same_run(const Manifest& manifest, const std::string& path,
                                         const RunIdentity& run);

/// Samples that the data order of a run that goes on from the checkpoint is made for: the
/// checkpoint's own number, because more samples are another order, in which some come again and
/// others never. Throws UsageError if `run` is to consume more, unless --allow-changed-options
/// names train-iters; then that is the number.
int64_t continued_order(const Manifest& manifest, const std::string& path, const RunIdentity& run);

/// The newest checkpoint of the save folder whose manifest can be read; "" if there is none. Throws
/// UsageError if there are checkpoints and --resume never was given. Changes nothing.
std::string newest_readable(const RunIdentity& run);

/// Folders of checkpoints to go on from, the best first: those of the save folder, newest first;
/// while it has none, those that load-checkpoint leads to. Empty: start afresh. Tells of
/// checkpoints that were there and are not complete any more, and puts them aside in `folder`
/// (null: leaves them). Throws UsageError where a fresh start would forget them, or options ask for
/// what is not there.
std::vector<std::string> resume_candidates(const RunIdentity& run, SaveFolder* folder);

}  // namespace phalanx
