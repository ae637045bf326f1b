// The objects behind the handles of the runtime API. One lock guards handles and captures.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "tests/cuda_emulator/stream.h"

namespace phalanx::emulator {

/// Work in order, done by one host thread. The n-th task has ticket n.
class Timeline {
 public:
  explicit Timeline(int device);
  ~Timeline();  // waits for all tasks
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;

  uint64_t submit(Task task);
  uint64_t submitted() const;
  bool done(uint64_t ticket);  // asking counts as demand under lazy streams
  void wait(uint64_t ticket);

 private:
  void work();
  void pause() const;
  int device_;
  mutable std::mutex mutex_;
  std::condition_variable queued_;
  std::condition_variable finished_;
  std::deque<Task> queue_;
  uint64_t submitted_ = 0;
  uint64_t completed_ = 0;
  uint64_t demanded_ = 0;
  bool stopping_ = false;
  std::thread worker_;
};

struct Graph {
  struct Node {
    Task task;
    std::vector<int> after;  // nodes that must have run
  };
  std::vector<Node> nodes;
};

/// The recording of a graph, begun on one stream and carried to others by events.
struct Capture {
  Graph graph;
  cudaStream_t origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  bool invalidated = false;
  bool ended = false;
};

}  // namespace phalanx::emulator

struct CUstream_st {
  int device = 0;
  bool is_default = false;
  bool blocking = true;  // ordered with the default stream
  std::shared_ptr<phalanx::emulator::Timeline> timeline;
  std::shared_ptr<phalanx::emulator::Capture> capture;
  std::vector<int> tails;  // nodes that the next captured one comes after
};

struct CUevent_st {
  int device = 0;
  bool timed = true;
  std::shared_ptr<phalanx::emulator::Timeline> timeline;  // null: never recorded
  uint64_t ticket = 0;
  std::shared_ptr<std::chrono::steady_clock::time_point> time;
  std::shared_ptr<phalanx::emulator::Capture> capture;
  std::vector<int> nodes;
};

struct CUgraph_st {
  std::shared_ptr<const phalanx::emulator::Graph> graph;
};
struct CUgraphExec_st {
  std::shared_ptr<const phalanx::emulator::Graph> graph;
};

namespace phalanx::emulator {

/// All handles, and the lock for them and for captures.
struct Handles {
  std::mutex mutex;
  std::set<cudaStream_t> streams;  // with the default streams
  std::set<cudaEvent_t> events;
  std::set<cudaGraph_t> graphs;
  std::set<cudaGraphExec_t> executables;
  std::vector<cudaStream_t> default_streams;  // by device
};
Handles& handles();

/// The stream of a handle (nullptr: the current device's default stream); nullptr if it is none.
/// The lock is held.
cudaStream_t find_stream(cudaStream_t stream);

int current_device();
/// The capture of `stream` if it goes on (also invalidated), else nullptr. The lock is held.
Capture* active_capture(cudaStream_t stream);
/// Adds a node to the capture of `stream`. The lock is held.
cudaError_t add_node(cudaStream_t stream, Task task);
/// Runs a graph's nodes one after another.
void run_graph(const Graph& graph);

}  // namespace phalanx::emulator
