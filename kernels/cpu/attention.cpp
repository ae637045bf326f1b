// Forward of attention on the CPU: softmax(q k^T * scale + mask) v, with the online softmax
// (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022): no S x S matrix is ever stored.
//
// A tile of 64 query rows is held transposed, rows as vector lanes: scores^T = K Q^T. Then the
// maximum and the sum over keys are plain vector operations, and neither K nor V is repacked.
#include "kernels/cpu/attention.h"

#include <omp.h>

#include <cmath>

#include "kernels/cpu/attention_cover.h"
#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/cpu_backend.h"

namespace phalanx {
namespace {

/// Everything one thread needs for one query tile.
template <class T>
struct ForwardTile {
  using Traits = TileTraits<T>;
  using Real = typename Traits::Real;
  using Stored = typename Traits::Stored;
  using Lanes = typename Traits::Lanes;

  QueryRows rows;
  BlockCover<T> cover;
  Stored* queries = nullptr;            // [D / kPack][row][kPack]
  Stored* key_rows = nullptr;           // [key][D], when k must be copied
  Stored* value_rows = nullptr;         // [key][D], when v must be copied
  Stored* values = nullptr;             // [key / kPack][D][kPack]
  Stored* weights = nullptr;            // [key / kPack][row][kPack]; f32 and f64: is `scores`
  Real* scores = nullptr;               // [key][row]
  Real* sums = nullptr;                 // [row][D]: weighted sum of values so far
  alignas(64) Real maximum[kTileRows];  // of the scores so far, not yet times `scale`
  alignas(64) Real total[kTileRows];    // of the weights so far
  alignas(64) Real rescale[kTileRows];  // what the last block multiplied older sums by
  GrowingBuffer<Stored> stored_buffer;
  GrowingBuffer<Real> real_buffer;

  void reserve(int64_t width) {
    const int64_t tile = kTileRows * width;
    const int64_t square = kTileKeys * kTileRows;
    Stored* stored = stored_buffer.get(4 * tile + square);
    queries = stored;
    key_rows = stored + tile;
    value_rows = stored + 2 * tile;
    values = stored + 3 * tile;
    Real* real = real_buffer.get(tile + square);
    sums = real;
    scores = real + tile;
    if constexpr (std::is_same_v<Stored, Real>) {
      weights = scores;
    } else {
      weights = stored + 4 * tile;
    }
  }
};

template <class T>
void begin_tile(ForwardTile<T>& tile, const AttentionProblem<T>& problem) {
  using Real = typename ForwardTile<T>::Real;
  tile.reserve(problem.width);
  const QueryRows& rows = tile.rows;
  const T* q = problem.q + (rows.pair * problem.rows() + rows.first) * problem.head_dim;
  const TileRows<T> loaded = load_rows(problem, q, rows.count, tile.value_rows);
  pack_transposed<T>(tile.queries, loaded, rows.count, problem.width);
  std::fill(tile.sums, tile.sums + kTileRows * problem.width, Real(0));
  std::fill(tile.maximum, tile.maximum + kTileRows, -std::numeric_limits<Real>::infinity());
  std::fill(tile.total, tile.total + kTileRows, Real(0));
}

/// One vector of queries against the block: scores become weights 2^(log2(e) scale (s - max)); max,
/// total and rescale are brought up to date. Returns whether older sums must be rescaled.
template <class T, bool kMasked>
bool softmax_vector(ForwardTile<T>& tile, int64_t vector, typename ForwardTile<T>::Real factor) {
  using Tile = ForwardTile<T>;
  using Real = typename Tile::Real;
  using Lanes = typename Tile::Lanes;
  using Type = typename Lanes::Type;
  constexpr int64_t kPack = Tile::Traits::kPack;
  const Type lowest = Lanes::broadcast(-std::numeric_limits<Real>::infinity());
  const int64_t lane = vector * Lanes::kLanes;
  const int64_t key_begin = tile.cover.key_begin[vector];
  const int64_t key_end = tile.cover.key_end[vector];
  Real* scores = tile.scores + lane;

  const Type old_maximum = Lanes::load(tile.maximum + lane);
  Type maximum = old_maximum;
  for (int64_t key = key_begin; key < key_end; ++key) {
    Type score = Lanes::load(scores + key * kTileRows);
    if constexpr (kMasked) {
      const auto number = Lanes::broadcast_integer(key);
      const auto visible = (number >= Lanes::load_integers(tile.cover.begin + lane)) &
                           (number < Lanes::load_integers(tile.cover.end + lane));
      score = visible ? score : lowest;
      Lanes::store(scores + key * kTileRows, score);
    }
    maximum = Lanes::max(maximum, score);
  }
  // A row that has seen nothing yet keeps its maximum of -infinity; 0 stands in for it below, so
  // that -infinity is not subtracted from itself.
  const Type base = maximum == lowest ? Type{} : maximum;
  const Type offset = base * factor;
  const Type rescale = Lanes::exp2((old_maximum - base) * factor);
  Type total = Lanes::load(tile.total + lane) * rescale;
  for (int64_t key = key_begin; key < key_end; key += kPack) {
    const Type first = Lanes::exp2(Lanes::load(scores + key * kTileRows) * factor - offset);
    total = total + first;
    if constexpr (kPack == 1) {
      Lanes::store(scores + key * kTileRows, first);
    } else {
      Type second{};
      if (key + 1 < key_end) {
        second = Lanes::exp2(Lanes::load(scores + (key + 1) * kTileRows) * factor - offset);
        total = total + second;
      }
      Tile::Traits::store_interleaved(tile.weights + key * kTileRows + lane * kPack, first, second);
    }
  }
  Lanes::store(tile.maximum + lane, maximum);
  Lanes::store(tile.total + lane, total);
  Lanes::store(tile.rescale + lane, rescale);
  bool moved = false;
  for (int64_t i = lane; i < lane + Lanes::kLanes; ++i) moved |= tile.rescale[i] != Real(1);
  return moved;
}

/// sums += weights V for one vector of queries.
template <class T>
void add_values(ForwardTile<T>& tile, const TileRows<T>& values, int64_t vector, int64_t width) {
  using Lanes = typename ForwardTile<T>::Lanes;
  constexpr int64_t kPack = ForwardTile<T>::Traits::kPack;
  const int64_t key_begin = tile.cover.key_begin[vector];
  tile_product<T, TileLayout::by_columns>(
      {.a = tile.weights + key_begin * kTileRows + vector * Lanes::kLanes * kPack,
       .a_stride = kTileRows * kPack,
       .b = values.data + key_begin / kPack * values.stride,
       .b_stride = values.stride,
       .c = tile.sums + vector * Lanes::kLanes * width,
       .c_stride = width,
       .rows = Lanes::kLanes,
       .vectors = width / Lanes::kLanes,
       .sum = round_up(tile.cover.key_end[vector] - key_begin, kPack),
       .accumulate = true});
}

template <class T>
void rescale_sums(ForwardTile<T>& tile, int64_t vector, int64_t width) {
  using Lanes = typename ForwardTile<T>::Lanes;
  for (int64_t i = vector * Lanes::kLanes; i < (vector + 1) * Lanes::kLanes; ++i) {
    const auto rescale = Lanes::broadcast(tile.rescale[i]);
    for (int64_t d = i * width; d < (i + 1) * width; d += Lanes::kLanes) {
      Lanes::store(tile.sums + d, Lanes::load(tile.sums + d) * rescale);
    }
  }
}

template <class T>
void attend_block(ForwardTile<T>& tile, const AttentionProblem<T>& problem, const KeyBlock& block,
                  int64_t row) {
  const auto factor = static_cast<typename ForwardTile<T>::Real>(problem.inputs.scale * kLog2E);
  cover_block(tile.cover, problem.inputs.mask, tile.rows, block);
  const int64_t count = block.end - block.begin;
  const int64_t index =
      problem.key_index(block.copy - problem.inputs.first_key_copy, tile.rows.pair, row);
  const auto keys = load_rows(problem, problem.k + index, count, tile.key_rows);
  score_block<T>(tile.cover, keys, tile.queries, problem.width, tile.scores);
  const auto values = pack_interleaved<T>(
      tile.values, load_rows(problem, problem.v + index, count, tile.value_rows), count,
      problem.width);
  for (int64_t vector = 0; vector < tile.cover.vectors; ++vector) {
    if (tile.cover.key_begin[vector] >= tile.cover.key_end[vector]) continue;
    const bool moved = tile.cover.masked ? softmax_vector<T, true>(tile, vector, factor)
                                         : softmax_vector<T, false>(tile, vector, factor);
    if (moved) rescale_sums(tile, vector, problem.width);
    add_values(tile, values, vector, problem.width);
  }
}

/// out = sums / total, lse = scale * max + log(total); 0 and -infinity for rows that saw nothing.
template <class T>
void finish_tile(const ForwardTile<T>& tile, const AttentionProblem<T>& problem, T* out,
                 typename ForwardTile<T>::Real* lse) {
  using Real = typename ForwardTile<T>::Real;
  const QueryRows& rows = tile.rows;
  for (int64_t i = 0; i < rows.count; ++i) {
    const bool empty = tile.total[i] == Real(0);
    const Real inverse = empty ? Real(0) : Real(1) / tile.total[i];
    store_scaled(out + problem.output_index(rows.pair, rows.first + i),
                 tile.sums + i * problem.width, inverse, problem.head_dim);
    lse[rows.pair * problem.rows() + rows.first + i] =
        empty ? -std::numeric_limits<Real>::infinity()
              : tile.maximum[i] * static_cast<Real>(problem.inputs.scale) + std::log(tile.total[i]);
  }
}

template <class T>
void forward(const Tensor& out, const Tensor& lse, const AttentionInputs& inputs, int num_threads) {
  using Real = typename ForwardTile<T>::Real;
  const AttentionProblem<T> problem(inputs);
  T* out_data = out.as<T>();
  Real* lse_data = lse.as<Real>();
  const int64_t num_tiles = problem.num_tiles();
  const int64_t num_tasks = num_tiles * problem.num_pairs();
#pragma omp parallel for schedule(dynamic) num_threads(num_threads)
  for (int64_t task = 0; task < num_tasks; ++task) {
    thread_local ForwardTile<T> tile;
    // Last tiles first: they see the most keys, and the small ones fill the gaps at the end.
    const int64_t number = num_tiles - 1 - task % num_tiles;
    tile.rows = query_rows(problem, task / num_tiles, number);
    begin_tile(tile, problem);
    problem.for_each_block(
        tile.rows.tile, problem.all_keys,
        [&](const KeyBlock& block, int64_t row) { attend_block(tile, problem, block, row); });
    finish_tile(tile, problem, out_data, lse_data);
  }
}

}  // namespace

void cpu_attention_forward(const Tensor& out, const Tensor& lse, const AttentionInputs& inputs,
                           int num_threads) {
  check(inputs.scale > 0.0, "the scale of attention must be positive: ", inputs.scale);
  const int threads = num_threads > 0 ? num_threads : omp_get_max_threads();
  dispatch_float(inputs.q.dtype, [&]<class T>() { forward<T>(out, lse, inputs, threads); });
}

void CpuBackend::attention_forward_impl(const Tensor& out, const Tensor& lse,
                                        const AttentionInputs& inputs) {
  cpu_attention_forward(out, lse, inputs, num_threads_);
}

}  // namespace phalanx
