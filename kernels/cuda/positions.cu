// Some positions (dim -2) of a tensor: taken out as one dense tensor, and added back.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/packs.h"

namespace phalanx {
namespace {

/// Some of the runs, by value: the list lies in host memory, and a kernel's arguments are copied
/// when it is queued.
struct RunChunk {
  static constexpr int kMost = 64;
  int count = 0;
  int64_t first_kept = 0;         // where the first run starts along `part`
  int64_t begin[kMost];           // of run r along `whole`
  int64_t first[kMost + 1] = {};  // of run r, along this chunk's positions; [count] is their number

  int64_t positions() const { return first[count]; }
};

/// Rows of `whole` [outer, positions, width] beside rows of `part` [outer, kept, width], for the
/// positions of one chunk.
struct PositionMap {
  int64_t positions;
  int64_t kept;
  int64_t width;
  RunChunk runs;

  struct Places {
    int64_t whole, part;
  };
  /// Where element i of [outer, positions of the chunk, width] lies.
  __device__ Places places(int64_t i) const {
    const int64_t row = i / width;
    const int64_t inside = i % width;
    const int64_t outer = row / runs.first[runs.count];
    const int64_t position = row % runs.first[runs.count];
    int run = 0;
    for (int beyond = runs.count; beyond - run > 1;) {
      const int middle = (run + beyond) / 2;
      if (runs.first[middle] <= position)
        run = middle;
      else
        beyond = middle;
    }
    const int64_t in_whole = runs.begin[run] + position - runs.first[run];
    return {(outer * positions + in_whole) * width + inside,
            (outer * kept + runs.first_kept + position) * width + inside};
  }
};

template <class T>
struct Gather {
  T* part;
  const T* whole;
  PositionMap map;

  template <int n>
  __device__ void run(int64_t i) const {
    const auto places = map.places(i);
    store_pack(part + places.part, load_pack<n>(whole + places.whole));
  }
};

/// Every position is in one run at most, so that no two threads add to one element.
template <class T>
struct AccumulatePositions {
  using Acc = Accumulator<T>;
  Acc* whole;
  const T* part;
  PositionMap map;

  template <int n>
  __device__ void run(int64_t i) const {
    const auto places = map.places(i);
    Acc sums[n];
    Acc added[n];
    load<n>(sums, whole + places.whole);
    load<n>(added, part + places.part);
#pragma unroll
    for (int j = 0; j < n; ++j) sums[j] += added[j];
    store<n>(whole + places.whole, sums);
  }
};

/// Calls body(map, elements) for chunks of the runs.
template <class Body>
void for_each_chunk(const Tensor& whole, const Tensor& part, std::span<const PositionRange> runs,
                    const Body& body) {
  if (part.numel() == 0) return;
  PositionMap map{whole.shape[-2], part.shape[-2], whole.shape.back(), {}};
  const int64_t outer = part.shape.rows() / map.kept;
  RunChunk& chunk = map.runs;
  const auto send = [&] {
    if (chunk.count > 0) body(map, outer * chunk.positions() * map.width);
    chunk.first_kept += chunk.positions();
    chunk.count = 0;
  };
  for (const PositionRange& run : runs) {
    if (run.size() == 0) continue;
    if (chunk.count == RunChunk::kMost) send();
    chunk.begin[chunk.count] = run.begin;
    chunk.first[chunk.count + 1] = chunk.positions() + run.size();
    ++chunk.count;
  }
  send();
}

}  // namespace

void CudaBackend::gather_positions_impl(const Tensor& y, const Tensor& x,
                                        std::span<const PositionRange> runs) {
  dispatch_float(x.dtype, [&]<class T>() {
    const bool in_packs = x.shape.back() % kPack<T> == 0 && starts_packs({y.data, x.data});
    for_each_chunk(x, y, runs, [&](const PositionMap& map, int64_t count) {
      launch_packs<T>(Gather<T>{y.as<T>(), x.as<T>(), map}, count, in_packs, stream_);
    });
  });
}

void CudaBackend::accumulate_positions_impl(const Tensor& y, const Tensor& x,
                                            std::span<const PositionRange> runs) {
  dispatch_float(x.dtype, [&]<class T>() {
    const bool in_packs = x.shape.back() % kPack<T> == 0 && starts_packs({y.data, x.data});
    for_each_chunk(y, x, runs, [&](const PositionMap& map, int64_t count) {
      const AccumulatePositions<T> add{y.as<Accumulator<T>>(), x.as<T>(), map};
      launch_packs<T>(add, count, in_packs, stream_);
    });
  });
}

}  // namespace phalanx
