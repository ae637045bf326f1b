// The work of emulated NCCL operations: MPI calls that a stream's thread makes.
#pragma once

#include <mpi.h>

#include <atomic>
#include <memory>
#include <vector>

#include "tests/cuda_emulator/include/nccl.h"

namespace phalanx::emulator {

/// What operations under way share with their communicator, and outlives it.
struct NcclPeers {
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0;
  int size = 1;
  std::atomic<bool> aborted = false;
  std::atomic<int> num_under_way = 0;
};

enum class NcclKind { all_reduce, reduce, broadcast, all_gather, reduce_scatter, send, receive };

struct NcclOperation {
  NcclKind kind = NcclKind::send;
  const void* source = nullptr;
  void* target = nullptr;
  size_t count = 0;  // elements, as in NCCL's call
  ncclDataType_t type = ncclUint8;
  ncclRedOp_t reduction = ncclSum;
  int peer = 0;  // or root
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
};

size_t nccl_type_bytes(ncclDataType_t type);

/// Runs the operations of one NCCL group side by side; returns when all are done or the peers'
/// `aborted` is set. A send is done when its receive was met, not before: NCCL promises no more.
void run_nccl_operations(const std::vector<NcclOperation>& operations,
                         const std::shared_ptr<NcclPeers>& peers);

}  // namespace phalanx::emulator
