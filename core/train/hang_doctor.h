// HangDoctor: threads beside a rank's work that see when nothing goes on any more, say why, and end
// the job, so that it can be started again.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/train/hang_times.h"
#include "kernels/base/flight_recorder.h"
#include "parallel/device_mesh.h"

namespace phalanx {

struct HangDoctorOptions {
  std::string run_dir;  // on a file system that all ranks share
  FlightOwner owner;
  DeviceMesh mesh;
  int64_t attempt = 0;  // the same in all ranks of this start, another one than in other starts
  int64_t first_started_ns = 0;  // of rank 0's record: if it changes, another start has the folder
  std::chrono::seconds timeout{0};  // 0: records only
  /// Ends all ranks with this exit code. Called in any thread, perhaps twice; may hang or return.
  std::function<void(int)> end_job;
};

/// One per process, made before its groups. Three threads:
///   the heart writes the flight record every few seconds;
///   the watch counts for how long nothing has gone on here. It never waits for a file system, so
///     that it can end the process when everything else hangs;
///   the doctor's, once nothing has gone on for `timeout`, looks at the records of all ranks, as
///     one rank of all does (hang_incident.h).
///
/// A hang is when in every rank whose heart beats nothing has gone on for `timeout`, up to its last
/// heartbeat. Each rank's times are compared among themselves only, so clocks need not agree, and
/// time in which a process was stopped does not count for it. Then the doctor says what
/// hang_diagnosis.h finds, all ranks write their native stacks to RUN/ranks, the ledger gets a
/// record, and the job ends with kExitHung.
class HangDoctor {
 public:
  HangDoctor(HangDoctorOptions options, std::unique_ptr<FlightRecorder> recorder);
  /// Waits shortly for the threads; one that the file system holds goes on without us.
  ~HangDoctor();
  HangDoctor(const HangDoctor&) = delete;
  HangDoctor& operator=(const HangDoctor&) = delete;

 private:
  class Ward;
  std::shared_ptr<Ward> ward_;
};

}  // namespace phalanx
