// Capture of streams into graphs, and graphs.
#include <algorithm>
#include <iterator>
#include <utility>

#include "tests/cuda_emulator/counters.h"
#include "tests/cuda_emulator/order.h"
#include "tests/cuda_emulator/runtime_state.h"

namespace phalanx::emulator {
namespace {

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

/// The nodes that come before `tails` (with themselves), as flags.
std::vector<bool> ancestors(const Graph& graph, std::vector<int> tails) {
  std::vector<bool> seen(graph.nodes.size(), false);
  while (!tails.empty()) {
    const auto node = static_cast<size_t>(tails.back());
    tails.pop_back();
    if (seen[node]) continue;
    seen[node] = true;
    std::copy(graph.nodes[node].after.begin(), graph.nodes[node].after.end(),
              std::back_inserter(tails));
  }
  return seen;
}

/// Takes all streams out of the capture; true if each had come together with its origin again.
bool end_capture(const std::shared_ptr<Capture>& capture) {
  const auto joined = ancestors(capture->graph, capture->origin->tails);
  bool all_joined = true;
  for (cudaStream_t stream : handles().streams) {
    if (stream->capture != capture) continue;
    for (int tail : stream->tails) all_joined &= joined[static_cast<size_t>(tail)];
    stream->capture = nullptr;
    stream->tails.clear();
  }
  capture->ended = true;
  return all_joined;
}

}  // namespace

Capture* active_capture(cudaStream_t stream) {
  return stream->capture != nullptr && !stream->capture->ended ? stream->capture.get() : nullptr;
}

cudaError_t add_node(cudaStream_t stream, Task task) {
  Capture& capture = *stream->capture;
  if (capture.invalidated) return cudaErrorStreamCaptureInvalidated;
  capture.graph.nodes.push_back({std::move(task), stream->tails});
  stream->tails = {static_cast<int>(capture.graph.nodes.size()) - 1};
  return cudaSuccess;
}

bool capture_forbids() {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return false;
  const std::lock_guard lock(handles().mutex);
  bool forbidden = false;
  for (cudaStream_t stream : handles().streams) {
    Capture* const capture = active_capture(stream);
    if (capture == nullptr || capture->mode == cudaStreamCaptureModeRelaxed) continue;
    const bool mine = capture->thread == std::this_thread::get_id();
    const bool everywhere =
        capture->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
    if (!mine && !everywhere) continue;
    capture->invalidated = true;
    forbidden = true;
  }
  return forbidden;
}

/// In an order that the dependencies allow: as captured, the latest first, or a random one.
void run_graph(const Graph& graph) {
  RunOrder order = RunOrder::current();
  std::vector<int> missing(graph.nodes.size());
  std::vector<std::vector<size_t>> followers(graph.nodes.size());
  std::vector<size_t> ready;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    missing[i] = static_cast<int>(graph.nodes[i].after.size());
    for (int before : graph.nodes[i].after) followers[static_cast<size_t>(before)].push_back(i);
    if (missing[i] == 0) ready.push_back(i);
  }
  while (!ready.empty()) {
    std::sort(ready.begin(), ready.end(), std::greater<>());
    if (order.order() == Order::backward) std::swap(ready.front(), ready.back());
    if (order.is_random()) std::swap(ready.back(), ready[order.random(ready.size())]);
    const size_t node = ready.back();
    ready.pop_back();
    graph.nodes[node].task();
    for (size_t follower : followers[node])
      if (--missing[follower] == 0) ready.push_back(follower);
  }
}

}  // namespace phalanx::emulator

using namespace phalanx::emulator;  // NOLINT: the API below is C

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  if (device_error() != cudaSuccess) return note(device_error());
  const std::lock_guard lock(handles().mutex);
  stream = find_stream(stream);
  if (stream == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (stream->is_default) return note(cudaErrorStreamCaptureUnsupported);
  if (active_capture(stream) != nullptr) return note(cudaErrorInvalidValue);
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = stream;
  stream->capture->mode = mode;
  stream->capture->thread = std::this_thread::get_id();
  stream->tails.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* pGraph) {
  if (pGraph == nullptr) return note(cudaErrorInvalidValue);
  *pGraph = nullptr;
  const std::lock_guard lock(handles().mutex);
  stream = find_stream(stream);
  if (stream == nullptr) return note(cudaErrorInvalidResourceHandle);
  const std::shared_ptr<Capture> capture = stream->capture;
  if (active_capture(stream) == nullptr) return note(cudaErrorInvalidValue);
  if (capture->origin != stream) {
    capture->invalidated = true;
    return note(cudaErrorStreamCaptureUnmatched);
  }
  if (capture->mode != cudaStreamCaptureModeRelaxed &&
      capture->thread != std::this_thread::get_id())
    return note(cudaErrorStreamCaptureWrongThread);
  const bool joined = end_capture(capture);
  if (capture->invalidated) return note(cudaErrorStreamCaptureInvalidated);
  if (!joined) return note(cudaErrorStreamCaptureUnjoined);
  *pGraph = new CUgraph_st{std::make_shared<const Graph>(std::move(capture->graph))};
  handles().graphs.insert(*pGraph);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
                                  enum cudaStreamCaptureStatus* pCaptureStatus) {
  const std::lock_guard lock(handles().mutex);
  stream = find_stream(stream);
  if (stream == nullptr) return note(cudaErrorInvalidResourceHandle);
  Capture* const capture = active_capture(stream);
  *pCaptureStatus = capture == nullptr     ? cudaStreamCaptureStatusNone
                    : capture->invalidated ? cudaStreamCaptureStatusInvalidated
                                           : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* pGraphExec, cudaGraph_t graph,
                                 unsigned long long) {
  if (device_error() != cudaSuccess) return note(device_error());
  const std::lock_guard lock(handles().mutex);
  if (pGraphExec == nullptr || !handles().graphs.contains(graph))
    return note(cudaErrorInvalidValue);
  *pGraphExec = new CUgraphExec_st{graph->graph};
  handles().executables.insert(*pGraphExec);
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* numNodes) {
  const std::lock_guard lock(handles().mutex);
  if (numNodes == nullptr || nodes != nullptr || !handles().graphs.contains(graph))
    return note(cudaErrorInvalidValue);  // only the number of nodes can be asked for here
  *numNodes = graph->graph->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t graphExec, cudaStream_t) {
  const std::lock_guard lock(handles().mutex);
  return note(handles().executables.contains(graphExec) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graphExec, cudaStream_t stream) {
  std::shared_ptr<const Graph> graph;
  {
    const std::lock_guard lock(handles().mutex);
    if (!handles().executables.contains(graphExec)) return note(cudaErrorInvalidValue);
    graph = graphExec->graph;
  }
  ++counters().graph_launches;
  return submit(stream, [graph] { run_graph(*graph); });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graphExec) {
  const std::lock_guard lock(handles().mutex);
  if (handles().executables.erase(graphExec) == 0) return note(cudaErrorInvalidValue);
  delete graphExec;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const std::lock_guard lock(handles().mutex);
  if (handles().graphs.erase(graph) == 0) return note(cudaErrorInvalidValue);
  delete graph;
  return cudaSuccess;
}
