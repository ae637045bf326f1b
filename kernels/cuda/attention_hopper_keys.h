// The ring of key and value tiles that Hopper's query-stationary kernels (forward, dq) read: a
// producer warpgroup fills it with the blocks that a tile of query rows visits, consumers read it.
#pragma once

#include "kernels/cuda/attention_hopper_tiles.h"

namespace phalanx {

/// In shared memory. kRows: query rows of the tile; kKeys: keys of a block.
template <int kTileRows, int kBlockKeys, int kWidth, int kStages>
struct KeyRing {
  static constexpr int kRows = kTileRows;
  static constexpr int kKeys = kBlockKeys;
  using Place = RingPlace<kStages>;

  SharedTile<kKeys, kWidth> k[kStages], v[kStages];
  VisibleColumns columns[kStages][kRows];  // of k, if it is masked
  BlockKind kind[kStages];                 // of k
  PairTile tile;
  VisitedKeys visited;  // the schedule is here, because producers have few registers
  KeyRows keys[kStages];
  uint64_t k_filled[kStages], k_free[kStages], v_filled[kStages], v_free[kStages];

  /// One thread; barrier_init_fence() and __syncthreads() follow. `readers` are warps.
  __device__ void init(const AttentionLayout& layout, int readers) {
    tile = longest_first(layout, blockIdx.x, kRows);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&k_filled[stage], kWarpgroup / kWarp);
      barrier_init(&v_filled[stage], 1);
      barrier_init(&k_free[stage], static_cast<uint32_t>(readers));
      barrier_init(&v_free[stage], static_cast<uint32_t>(readers));
    }
  }

  /// The producer warpgroup: thread 0 brings every block that the tile visits; each thread finds
  /// what its row of the tile sees of a block, because consumers have no registers left for it.
  __device__ void fill(const AttentionLayout& layout, const TensorMap& k_map,
                       const TensorMap& v_map) {
    static_assert(kRows == kWarpgroup, "one row of the tile for each thread");
    const QueryRow row = query_row(layout, tile.pair, tile.rows, static_cast<int>(threadIdx.x));
    if (threadIdx.x == 0) visited = VisitedKeys(layout, tile.rows.tile, kKeys);
    for (Place place;; place.advance()) {
      const int stage = place.stage;
      barrier_wait(&k_free[stage], place.free());
      if (threadIdx.x == 0) fetch_keys(stage, layout, k_map);
      __syncwarp();  // a named barrier is reached by whole warps
      named_barrier(1, kWarpgroup);
      const BlockKind what = kind[stage];
      if (what == BlockKind::masked)
        columns[stage][threadIdx.x] = visible_columns(layout, keys[stage].block, row);
      arrive_as_warp(&k_filled[stage]);
      if (what == BlockKind::end) return;
      if (threadIdx.x == 0) {
        barrier_wait(&v_free[stage], place.free());
        barrier_arrive_expecting(&v_filled[stage], v[stage].kBytes);
        v[stage].load(v_map, keys[stage].row, key_plane(layout, keys[stage], tile.pair),
                      &v_filled[stage]);
      }
      __syncwarp();
    }
  }

 private:
  /// One thread, once `stage` is free.
  __device__ void fetch_keys(int stage, const AttentionLayout& layout, const TensorMap& map) {
    KeyRows& next = keys[stage];
    if (!visited.next(layout, tile.rows.tile, next)) {
      kind[stage] = BlockKind::end;
      return;
    }
    const bool full = next.block.full && next.count() == kKeys;
    kind[stage] = full ? BlockKind::full : BlockKind::masked;
    barrier_expect(&k_filled[stage], k[stage].kBytes);
    k[stage].load(map, next.row, key_plane(layout, next, tile.pair), &k_filled[stage]);
  }
};

/// A consumer warpgroup's view of the ring. Collective.
template <class Ring>
struct KeyReader {
  Ring& ring;
  int first;  // the warpgroup's first row of the tile
  typename Ring::Place k_place{}, v_place{};

  /// Waits for the next keys; false at the end.
  __device__ bool next_block() {
    barrier_wait(&ring.k_filled[k_place.stage], k_place.filled());
    return ring.kind[k_place.stage] != BlockKind::end;
  }
  __device__ auto& keys() { return ring.k[k_place.stage]; }
  __device__ auto& values() { return ring.v[v_place.stage]; }
  __device__ void wait_for_values() {
    barrier_wait(&ring.v_filled[v_place.stage], v_place.filled());
  }
  __device__ void release_keys() {
    arrive_as_warp(&ring.k_free[k_place.stage]);
    k_place.advance();
  }
  __device__ void release_values() {
    arrive_as_warp(&ring.v_free[v_place.stage]);
    v_place.advance();
  }

  /// Scores of pairs that the mask hides become -infinity.
  template <int kCount>
  __device__ void mask(float (&s)[kCount]) {
    if (ring.kind[k_place.stage] == BlockKind::full) return;
    const int thread = static_cast<int>(threadIdx.x % kWarpgroup);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const VisibleColumns seen =
          ring.columns[k_place.stage][first + fragment_row(thread, half * 2)];
#pragma unroll
      for (int i = half * 2; i < kCount; i += 4)
#pragma unroll
        for (int j = i; j < i + 2; ++j) {
          const int column = fragment_column(thread, j);
          if (column < seen.begin || column >= seen.end) s[j] = -INFINITY;
        }
    }
  }
};

}  // namespace phalanx
