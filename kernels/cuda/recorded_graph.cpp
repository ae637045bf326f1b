// Recording ops as a CUDA graph: the stream is captured while they are handed in.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_error.h"

namespace phalanx {
namespace {

class RecordedGraph final : public RecordedOps {
 public:
  RecordedGraph(cudaGraph_t graph, cudaStream_t stream) : stream_(stream) {
    cuda_check(cudaGraphInstantiate(&executable_, graph, 0), "cudaGraphInstantiate");
  }
  ~RecordedGraph() override { static_cast<void>(cudaGraphExecDestroy(executable_)); }

  void replay() override { cuda_check(cudaGraphLaunch(executable_, stream_), "cudaGraphLaunch"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
};

/// A stream that records until `end`.
class Capture {
 public:
  // Other threads may go on with their own work on the GPU.
  explicit Capture(cudaStream_t stream) : stream_(stream) {
    cuda_check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
               "cudaStreamBeginCapture");
  }
  ~Capture() {
    if (active_) static_cast<void>(cudaStreamEndCapture(stream_, &graph_));
    if (graph_ != nullptr) static_cast<void>(cudaGraphDestroy(graph_));
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaGraph_t end() {
    active_ = false;
    cuda_check(cudaStreamEndCapture(stream_, &graph_), "cudaStreamEndCapture");
    return graph_;
  }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  bool active_ = true;
};

}  // namespace

std::unique_ptr<RecordedOps> CudaBackend::record(const std::function<void()>& hand_in) {
  workspace(1);  // ops that ask for it must find it: no memory can be taken while a stream records
  Capture capture(stream_);
  hand_in();
  return std::make_unique<RecordedGraph>(capture.end(), stream_);
}

}  // namespace phalanx
