// Faults on purpose, for tests that kill or hang a run at a chosen moment.
#pragma once

#include <string_view>

namespace phalanx {

/// Moments of a run that a test can name.
///   step       a training step has ended          snapshot   the snapshot is being taken
///   shard      a shard's blocks are being written commit     before the folder gets its name
///   latest     before the latest file is replaced retire     before an old checkpoint is deleted
///   evaluate   before a batch of an evaluation    data       before a run's data is opened
///
/// Does nothing unless the environment has PHALANX_FAULT=ACTION:MOMENT:COUNT[:RANK], where ACTION
/// is `kill` (SIGKILL to this process) or `hang` (sleeps for PHALANX_FAULT_SECONDS, 3600 if not
/// set, decimals allowed), and this is the COUNT-th passage of MOMENT in this process (from 1) on
/// RANK (any if absent). Several faults may be given, separated by commas. Throws UsageError at
/// every passage if the value does not have this form. Any thread may pass.
void fault_moment(std::string_view moment, int rank);

/// The action `slow`: sleeps at every passage from the COUNT-th on, for a node that is slower than
/// the others. Only of the moment `step`, which for it is inside the step, where a rank computes.
void fault_slowness(std::string_view moment, int rank);

}  // namespace phalanx
