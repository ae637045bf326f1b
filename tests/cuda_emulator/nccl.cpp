// Emulated NCCL: communicators over MPI, as non-blocking as NCCL's: making one takes a while, a
// call may be taken in only after some asking, and operations run on the stream they are given.
//
// EMULATED_NCCL_FAULT=hang: operations begun from now on never end, until the communicator is
// aborted. EMULATED_NCCL_FAULT=error: the communicator reports an error while they run.
#include <mpi.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "tests/cuda_emulator/nccl_operations.h"
#include "tests/cuda_emulator/stream.h"

using phalanx::emulator::NcclKind;
using phalanx::emulator::NcclOperation;
using phalanx::emulator::NcclPeers;

struct ncclComm {
  std::shared_ptr<NcclPeers> peers = std::make_shared<NcclPeers>();
  std::mutex mutex;
  std::thread making;  // of this communicator or one split from it
  std::atomic<bool> made = true;
  std::function<void()> taken_in;  // a call to be made when `asks_left` is 0
  int asks_left = 0;
  int num_calls = 0;
  std::atomic<ncclResult_t> state = ncclSuccess;
};

namespace {

constexpr int kAsks = 3;
thread_local int group_depth = 0;
thread_local std::vector<NcclOperation> group_operations;

bool fault_is(std::string_view name) {
  const char* fault = std::getenv("EMULATED_NCCL_FAULT");
  return fault != nullptr && name == fault;
}

bool is_non_blocking(const ncclConfig_t* config) {
  return config != nullptr && config->magic == 0xcafebeef && config->blocking == 0;
}

/// Runs `make` on a thread of its own, some time from now.
void make_later(ncclComm* comm, std::function<void()> make) {
  if (comm->making.joinable()) comm->making.join();
  comm->made = false;
  comm->making = std::thread([comm, make = std::move(make)] {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    make();
    comm->made = true;
  });
}

void set_peers(NcclPeers& peers) {
  MPI_Comm_rank(peers.comm, &peers.rank);
  MPI_Comm_size(peers.comm, &peers.size);
}

/// The error is told as soon as operations that must fail are under way.
void run(const std::vector<NcclOperation>& operations, const std::shared_ptr<NcclPeers>& peers) {
  while ((fault_is("hang") || fault_is("error")) && !peers->aborted)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  if (!peers->aborted) run_nccl_operations(operations, peers);
}

ncclResult_t start(std::vector<NcclOperation> operations) {
  if (operations.empty()) return ncclSuccess;
  ncclComm* comm = operations.front().comm;
  const cudaStream_t stream = operations.front().stream;
  for (const NcclOperation& operation : operations)
    if (operation.comm != comm || operation.stream != stream || comm == nullptr)
      return ncclInvalidUsage;  // not emulated: more than one communicator in a group
  const std::lock_guard lock(comm->mutex);
  if (!comm->made || comm->taken_in) return ncclInvalidUsage;  // NCCL was not asked to the end
  if (fault_is("error")) comm->state = ncclRemoteError;
  auto submit = [peers = comm->peers, stream, operations = std::move(operations)] {
    // What is captured into a graph runs as often as the graph does.
    const int counted = phalanx::emulator::is_capturing(stream) ? 0 : 1;
    peers->num_under_way += counted;
    phalanx::emulator::submit(stream, [operations, peers, counted] {
      run(operations, peers);
      peers->num_under_way -= counted;
    });
  };
  // Every other call is taken in at once.
  if (comm->num_calls++ % 2 == 0) {
    submit();
    return ncclSuccess;
  }
  comm->taken_in = std::move(submit);
  comm->asks_left = kAsks;
  return ncclInProgress;
}

ncclResult_t call(const NcclOperation& operation) {
  if (operation.source == nullptr && operation.target == nullptr && operation.count > 0)
    return ncclInvalidArgument;
  if (group_depth == 0) return start({operation});
  group_operations.push_back(operation);
  return ncclSuccess;
}

}  // namespace

ncclResult_t ncclGetUniqueId(ncclUniqueId* uniqueId) {
  std::random_device random;
  for (char& byte : uniqueId->internal) byte = static_cast<char>(random());
  return ncclSuccess;
}

// All ranks of MPI are in it, in MPI's order.
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int nranks, ncclUniqueId commId, int rank,
                                    ncclConfig_t* config) {
  int world_rank = 0;
  int world_size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  MPI_Comm_size(MPI_COMM_WORLD, &world_size);
  if (!is_non_blocking(config) || nranks != world_size || rank != world_rank)
    return ncclInvalidArgument;
  auto* created = new ncclComm;
  *comm = created;
  make_later(created, [created, commId] {
    MPI_Comm_dup(MPI_COMM_WORLD, &created->peers->comm);
    set_peers(*created->peers);
    ncclUniqueId first = commId;
    MPI_Bcast(first.internal, NCCL_UNIQUE_ID_BYTES, MPI_CHAR, 0, created->peers->comm);
    if (std::memcmp(first.internal, commId.internal, NCCL_UNIQUE_ID_BYTES) != 0)
      created->state = ncclInvalidArgument;
  });
  return ncclInProgress;
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* newcomm,
                           ncclConfig_t* config) {
  const std::lock_guard lock(comm->mutex);
  if (!is_non_blocking(config) || !comm->made || comm->taken_in) return ncclInvalidUsage;
  if (comm->peers->num_under_way > 0) return ncclInvalidUsage;
  make_later(comm, [comm, color, key, newcomm] {
    MPI_Comm split = MPI_COMM_NULL;
    MPI_Comm_split(comm->peers->comm, color == NCCL_SPLIT_NOCOLOR ? MPI_UNDEFINED : color, key,
                   &split);
    if (split == MPI_COMM_NULL) return;
    auto* created = new ncclComm;
    created->peers->comm = split;
    set_peers(*created->peers);
    created->asks_left = kAsks;
    *newcomm = created;
  });
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* asyncError) {
  const std::lock_guard lock(comm->mutex);
  *asyncError = ncclInProgress;
  if (!comm->made || (comm->asks_left > 0 && --comm->asks_left > 0)) return ncclSuccess;
  if (comm->taken_in) {
    comm->taken_in();
    comm->taken_in = nullptr;
  }
  *asyncError = comm->state;
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  const std::lock_guard lock(comm->mutex);
  comm->asks_left = kAsks;
  return ncclInProgress;
}

namespace {
void finish(ncclComm_t comm, bool free) {
  if (comm->making.joinable()) comm->making.join();
  while (comm->peers->num_under_way > 0)
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  if (free) MPI_Comm_free(&comm->peers->comm);
  delete comm;
}
}  // namespace

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  finish(comm, true);
  return ncclSuccess;
}

// Peers that fail abort too, so that nobody frees MPI's communicator with them.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->peers->aborted = true;
  finish(comm, false);
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "internal error";
  }
}

const char* ncclGetLastError(ncclComm_t) {
  return fault_is("error") ? "emulated fault" : "";
}

ncclResult_t ncclAllReduce(const void* sendbuff, void* recvbuff, size_t count,
                           ncclDataType_t datatype, ncclRedOp_t op, ncclComm_t comm,
                           cudaStream_t stream) {
  return call({NcclKind::all_reduce, sendbuff, recvbuff, count, datatype, op, 0, comm, stream});
}

ncclResult_t ncclReduce(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  return call({NcclKind::reduce, sendbuff, recvbuff, count, datatype, op, root, comm, stream});
}

ncclResult_t ncclBroadcast(const void* sendbuff, void* recvbuff, size_t count,
                           ncclDataType_t datatype, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  return call(
      {NcclKind::broadcast, sendbuff, recvbuff, count, datatype, ncclSum, root, comm, stream});
}

ncclResult_t ncclAllGather(const void* sendbuff, void* recvbuff, size_t sendcount,
                           ncclDataType_t datatype, ncclComm_t comm, cudaStream_t stream) {
  return call(
      {NcclKind::all_gather, sendbuff, recvbuff, sendcount, datatype, ncclSum, 0, comm, stream});
}

ncclResult_t ncclReduceScatter(const void* sendbuff, void* recvbuff, size_t recvcount,
                               ncclDataType_t datatype, ncclRedOp_t op, ncclComm_t comm,
                               cudaStream_t stream) {
  return call(
      {NcclKind::reduce_scatter, sendbuff, recvbuff, recvcount, datatype, op, 0, comm, stream});
}

ncclResult_t ncclSend(const void* sendbuff, size_t count, ncclDataType_t datatype, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return call({NcclKind::send, sendbuff, nullptr, count, datatype, ncclSum, peer, comm, stream});
}

ncclResult_t ncclRecv(void* recvbuff, size_t count, ncclDataType_t datatype, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return call({NcclKind::receive, nullptr, recvbuff, count, datatype, ncclSum, peer, comm, stream});
}

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0) return ncclSuccess;
  return start(std::exchange(group_operations, {}));
}
