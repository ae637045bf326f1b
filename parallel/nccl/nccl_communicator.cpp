// The life of a communicator, its operations and their failures.
#include "parallel/nccl/nccl_communicator.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <exception>
#include <thread>

#include "kernels/base/log.h"
#include "kernels/cuda/cuda_error.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;

ncclConfig_t non_blocking() {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  return config;
}

NcclCommunicator::Event make_event() {
  cudaEvent_t event = nullptr;
  cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  return {event, [](cudaEvent_t owned) { static_cast<void>(cudaEventDestroy(owned)); }};
}

std::string nccl_text(ncclResult_t result, ncclComm_t comm) {
  const char* details = ncclGetLastError(comm);
  const bool known = details != nullptr && details[0] != '\0';
  return fmt::format("failed in NCCL: {}{}{}", ncclGetErrorString(result), known ? ": " : "",
                     known ? details : "");
}

}  // namespace

NcclCommunicator::NcclCommunicator(NcclMembers members, const ncclUniqueId& id,
                                   const NcclContext& context)
    : members_(std::move(members)), context_(context) {
  ncclConfig_t config = non_blocking();
  const ncclResult_t result = ncclCommInitRankConfig(
      &comm_, static_cast<int>(members_.world_ranks.size()), id, members_.rank, &config);
  settle(comm_, result);
  open();
}

NcclCommunicator::NcclCommunicator(NcclMembers members, ncclComm_t comm, const NcclContext& context)
    : members_(std::move(members)), context_(context), comm_(comm) {
  settle(comm_, ncclInProgress);
  open();
}

// With the highest priority: the kernels of an operation are few, and other ranks wait for them.
void NcclCommunicator::open() {
  int lowest = 0;
  int highest = 0;
  cuda_check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "cudaDeviceGetStreamPriority");
  cuda_check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest),
             "cudaStreamCreate");
  reached_ = make_event();
  context_.watchdog->add(*this);
}

// Finalizing waits for the peers; a rank that fails, or finds that they do not come, aborts.
NcclCommunicator::~NcclCommunicator() {
  context_.watchdog->remove(*this);
  if (comm_ != nullptr && std::uncaught_exceptions() == 0 &&
      poll(comm_, ncclCommFinalize(comm_)) == ncclSuccess) {
    static_cast<void>(ncclCommDestroy(comm_));
  } else if (comm_ != nullptr) {
    static_cast<void>(ncclCommAbort(comm_));
  }
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
}

std::unique_ptr<NcclCommunicator> NcclCommunicator::split(NcclMembers members, int colour) {
  ncclComm_t comm = nullptr;
  {
    const std::lock_guard lock(mutex_);
    throw_if_failed();
    operation_ = "split";
    cuda_check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    ncclConfig_t config = non_blocking();
    settle(comm_, ncclCommSplit(comm_, colour, members_.rank, &comm, &config));
  }
  if (colour == kNoColour) return nullptr;
  return std::unique_ptr<NcclCommunicator>(
      new NcclCommunicator(std::move(members), comm, context_));
}

void NcclCommunicator::begin(const char* operation) {
  throw_if_failed();
  operation_ = operation;
  ++number_;
  cuda_check(cudaEventRecord(reached_.get(), context_.backend.stream()), "cudaEventRecord");
  cuda_check(cudaStreamWaitEvent(stream_, reached_.get(), 0), "cudaStreamWaitEvent");
}

// Operations in a graph run whenever the graph does: their events cannot be asked.
NcclCommunicator::Event NcclCommunicator::end(ncclResult_t result) {
  settle(comm_, result);
  Event done = free_event();
  cuda_check(cudaEventRecord(done.get(), stream_), "cudaEventRecord");
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cuda_check(cudaStreamIsCapturing(stream_, &capture), "cudaStreamIsCapturing");
  if (capture == cudaStreamCaptureStatusNone)
    under_way_.push_back({done, operation_, number_, Clock::now()});
  return done;
}

/// Asks a non-blocking communicator until it has taken in what it was told, or the deadline.
ncclResult_t NcclCommunicator::poll(ncclComm_t comm, ncclResult_t result) const {
  const Clock::time_point deadline = Clock::now() + context_.timeout;
  for (int i = 0; result == ncclInProgress && Clock::now() < deadline; ++i) {
    if (i > 0) std::this_thread::sleep_for(std::chrono::microseconds(std::min(i, 1000)));
    if (const ncclResult_t asked = ncclCommGetAsyncError(comm, &result); asked != ncclSuccess)
      return asked;
  }
  return result;
}

/// Throws unless NCCL takes it in.
void NcclCommunicator::settle(ncclComm_t comm, ncclResult_t result) {
  result = poll(comm, result);
  if (result == ncclSuccess) return;
  give_up(operation_, number_,
          result == ncclInProgress
              ? fmt::format("was not taken in by NCCL within {} s",
                            static_cast<double>(context_.timeout.count()) / 1000.0)
              : nccl_text(result, comm));
  throw_if_failed();
}

NcclCommunicator::Event NcclCommunicator::free_event() {
  for (const Event& event : events_)
    if (event.use_count() == 1) return event;
  return events_.emplace_back(make_event());
}

void NcclCommunicator::finish_before_further_ops(const Event& done) {
  throw_if_failed();
  cuda_check(cudaStreamWaitEvent(context_.backend.stream(), done.get(), 0), "cudaStreamWaitEvent");
}

// While the rank is inside a call, that call has a deadline of its own.
void NcclCommunicator::look() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock() || comm_ == nullptr) return;
  while (!under_way_.empty() && cudaEventQuery(under_way_.front().done.get()) != cudaErrorNotReady)
    under_way_.pop_front();  // errors of the device itself reach the rank by its own calls
  if (under_way_.empty()) return;
  const UnderWay& oldest = under_way_.front();
  ncclResult_t state = ncclSuccess;
  if (const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state); asked != ncclSuccess)
    state = asked;
  if (state != ncclSuccess && state != ncclInProgress) {
    give_up(oldest.operation, oldest.number, nccl_text(state, comm_));
  } else if (Clock::now() - oldest.since > context_.timeout) {
    give_up(oldest.operation, oldest.number,
            fmt::format("has not ended after {} s; a rank of the group is gone, hangs, or called "
                        "something else",
                        static_cast<double>(context_.timeout.count()) / 1000.0));
  }
}

std::string NcclCommunicator::text_of(const char* operation, int64_t number,
                                      const std::string& reason) const {
  return fmt::format(
      "group {}, rank {} of {} (world ranks {}): {}, operation number {} of this communicator, {}; "
      "the communicator is aborted",
      members_.name, members_.rank, members_.world_ranks.size(),
      fmt::join(members_.world_ranks, ", "), operation, number, reason);
}

/// Aborts, which ends the operations on the GPU, so that whoever waits for them goes on and finds
/// the failure at its next call. Logged at once, because the rank may never get there.
void NcclCommunicator::give_up(const char* operation, int64_t number, const std::string& reason) {
  const std::string text = text_of(operation, number, reason);
  log_line(text);
  context_.watchdog->report_failure(text);
  under_way_.clear();
  if (comm_ != nullptr) static_cast<void>(ncclCommAbort(comm_));
  comm_ = nullptr;
}

}  // namespace phalanx
