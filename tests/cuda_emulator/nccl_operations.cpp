// Emulated NCCL operations over MPI. Sums of bf16 are rounded at every addition, as NCCL may.
#include "tests/cuda_emulator/nccl_operations.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "kernels/base/dtype.h"

namespace phalanx::emulator {
namespace {

void add_bf16(void* in, void* inout, int* count, MPI_Datatype*) {
  const auto* x = static_cast<const BFloat16*>(in);
  auto* sum = static_cast<BFloat16*>(inout);
  for (int i = 0; i < *count; ++i)
    sum[i] = BFloat16(static_cast<float>(sum[i]) + static_cast<float>(x[i]));
}

void max_bf16(void* in, void* inout, int* count, MPI_Datatype*) {
  const auto* x = static_cast<const BFloat16*>(in);
  auto* most = static_cast<BFloat16*>(inout);
  for (int i = 0; i < *count; ++i)
    most[i] = BFloat16(std::max(static_cast<float>(most[i]), static_cast<float>(x[i])));
}

MPI_Op made(void (*function)(void*, void*, int*, MPI_Datatype*)) {
  MPI_Op op = MPI_OP_NULL;
  MPI_Op_create(function, 1, &op);
  return op;
}

MPI_Op mpi_op(ncclDataType_t type, ncclRedOp_t reduction) {
  static const MPI_Op bf16_sum = made(add_bf16);
  static const MPI_Op bf16_max = made(max_bf16);
  if (type == ncclBfloat16) return reduction == ncclSum ? bf16_sum : bf16_max;
  return reduction == ncclSum ? MPI_SUM : MPI_MAX;
}

MPI_Datatype mpi_type(ncclDataType_t type) {
  switch (type) {
    case ncclInt32:
      return MPI_INT32_T;
    case ncclInt64:
      return MPI_INT64_T;
    case ncclFloat32:
      return MPI_FLOAT;
    case ncclFloat64:
      return MPI_DOUBLE;
    case ncclBfloat16:
      return MPI_UINT16_T;
    case ncclUint8:
      return MPI_UINT8_T;
    default:
      throw std::runtime_error("emulated NCCL knows no data type " + std::to_string(type));
  }
}

constexpr int kTag = 7;

/// One operation under way. Results that NCCL may write in place come through memory of their own.
class Running {
 public:
  Running(const NcclOperation& operation, const NcclPeers& peers) : operation_(operation) {
    const auto count = static_cast<int>(operation.count);
    const MPI_Datatype type = mpi_type(operation.type);
    const size_t bytes = operation.count * nccl_type_bytes(operation.type);
    switch (operation.kind) {
      case NcclKind::all_reduce:
        result_.resize(bytes);
        MPI_Iallreduce(operation.source, result_.data(), count, type,
                       mpi_op(operation.type, operation.reduction), peers.comm, &request_);
        break;
      case NcclKind::reduce:
        if (peers.rank == operation.peer) result_.resize(bytes);
        MPI_Ireduce(operation.source, result_.data(), count, type,
                    mpi_op(operation.type, operation.reduction), operation.peer, peers.comm,
                    &request_);
        break;
      case NcclKind::broadcast:
        if (peers.rank == operation.peer) std::memmove(operation.target, operation.source, bytes);
        MPI_Ibcast(operation.target, count, type, operation.peer, peers.comm, &request_);
        break;
      case NcclKind::all_gather:
        result_.resize(bytes * static_cast<size_t>(peers.size));
        MPI_Iallgather(operation.source, count, type, result_.data(), count, type, peers.comm,
                       &request_);
        break;
      case NcclKind::reduce_scatter:
        result_.resize(bytes);
        MPI_Ireduce_scatter_block(operation.source, result_.data(), count, type,
                                  mpi_op(operation.type, operation.reduction), peers.comm,
                                  &request_);
        break;
      case NcclKind::send:
        MPI_Issend(operation.source, count, type, operation.peer, kTag, peers.comm, &request_);
        break;
      case NcclKind::receive:
        MPI_Irecv(operation.target, count, type, operation.peer, kTag, peers.comm, &request_);
        break;
    }
  }

  bool done() {
    int flag = 0;
    MPI_Test(&request_, &flag, MPI_STATUS_IGNORE);
    if (flag != 0 && !result_.empty()) {
      std::memcpy(operation_.target, result_.data(), result_.size());
      result_.clear();
    }
    return flag != 0;
  }
  /// Of a message only: MPI has no way to take back a collective.
  void cancel() {
    if (request_ == MPI_REQUEST_NULL || operation_.kind != NcclKind::receive) return;
    MPI_Cancel(&request_);
    MPI_Wait(&request_, MPI_STATUS_IGNORE);
  }

 private:
  NcclOperation operation_;
  std::vector<char> result_;
  MPI_Request request_ = MPI_REQUEST_NULL;
};

}  // namespace

size_t nccl_type_bytes(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
    default:
      return 4;
  }
}

void run_nccl_operations(const std::vector<NcclOperation>& operations,
                         const std::shared_ptr<NcclPeers>& peers) {
  std::vector<std::unique_ptr<Running>> running;
  for (const NcclOperation& operation : operations)
    running.push_back(std::make_unique<Running>(operation, *peers));
  while (!running.empty() && !peers->aborted) {
    std::erase_if(running, [](const auto& one) { return one->done(); });
    if (!running.empty()) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  for (const auto& one : running) one->cancel();
}

}  // namespace phalanx::emulator
