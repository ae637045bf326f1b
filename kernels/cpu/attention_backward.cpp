// Backward of attention on the CPU. With P = exp(scale q k^T - lse), delta = rowsum(dout * out) and
// dS = P * (dout v^T - delta):  dv = P^T dout,  dq = scale dS k,  dk = scale dS^T q.
// lse and delta are those of whole rows, so originals and hidden keys, and key blocks on other
// ranks, add up exactly.
//
// Tiles are held transposed as in the forward (query rows are vector lanes).
#include <omp.h>

#include <cmath>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_cover.h"
#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/cpu_backend.h"

namespace phalanx {
namespace {

/// Which gradients a pass over tiles makes.
enum class Pass : uint8_t { both, queries, keys };

/// Sums of dk and dv over query tiles for rows `range` of [Sk]: [slot of Kk][row - first][width].
template <class Real>
struct KeySums {
  Real* dk = nullptr;
  Real* dv = nullptr;
  PositionRange range;
  int64_t width = 0;

  int64_t offset(int64_t slot, int64_t row) const {
    return (slot * range.size() + row - range.begin) * width;
  }
};

/// Tensors of one call.
template <class T>
struct BackwardCall {
  using Real = typename TileTraits<T>::Real;
  BackwardCall(const Backend::AttentionBackward& arguments, const AttentionInputs& inputs)
      : problem(inputs),
        dq(arguments.gradients.dq.as<T>()),
        dk(arguments.gradients.dk.as<T>()),
        dv(arguments.gradients.dv.as<T>()),
        delta(arguments.delta.as<Real>()),
        dout(arguments.dout.as<T>()),
        out(arguments.out.as<T>()),
        lse(arguments.lse.as<Real>()) {}

  AttentionProblem<T> problem;
  T* dq;
  T* dk;
  T* dv;
  Real* delta;
  const T* dout;
  const T* out;
  const Real* lse;
};

/// Everything one thread needs.
template <class T>
struct BackwardTile {
  using Traits = TileTraits<T>;
  using Real = typename Traits::Real;
  using Stored = typename Traits::Stored;
  using Lanes = typename Traits::Lanes;

  QueryRows rows;
  BlockCover<T> cover;
  TileRows<T> query_rows, dout_rows;     // sums over rows: [row / kPack][D][kPack]
  Stored* queries = nullptr;             // [D / kPack][row][kPack]
  Stored* douts = nullptr;               // [D / kPack][row][kPack]
  Stored* rows_buffer[2] = {};           // [row][D]
  Stored* interleaved[2] = {};           // [row / kPack][D][kPack]
  Stored* key_buffer[3] = {};            // k and v by rows, k interleaved
  Stored* weights = nullptr;             // P by rows [key][row]
  Stored* dscores = nullptr;             // dS by rows [key][row]
  Stored* dscore_columns = nullptr;      // dS [key / kPack][row][kPack]
  Real* scores = nullptr;                // [key][row]
  Real* dweights = nullptr;              // [key][row]
  Real* dq = nullptr;                    // [row][D]
  alignas(64) Real log2_sum[kTileRows];  // lse * log2(e); 0 for rows that see nothing
  alignas(64) Real delta[kTileRows];
  GrowingBuffer<Stored> stored_buffer;
  GrowingBuffer<Real> real_buffer;
  GrowingBuffer<Real> sums_buffer;

  void reserve(int64_t width) {
    const int64_t size = kTileRows * width;
    const int64_t square = kTileKeys * kTileRows;
    Stored* stored = stored_buffer.get(9 * size + 3 * square);
    Stored** slots[] = {&queries,        &douts,          &rows_buffer[0],
                        &rows_buffer[1], &interleaved[0], &interleaved[1],
                        &key_buffer[0],  &key_buffer[1],  &key_buffer[2]};
    for (Stored** slot : slots) {
      *slot = stored;
      stored += size;
    }
    Real* real = real_buffer.get(size + 2 * square);
    dq = real;
    scores = real + size;
    dweights = scores + square;
    if constexpr (std::is_same_v<Stored, Real>) {  // weights replace scores in place
      weights = scores;
      dscores = dscore_columns = dweights;
    } else {
      weights = stored;
      dscores = stored + square;
      dscore_columns = stored + 2 * square;
    }
  }

  KeySums<Real> clear_sums(PositionRange range, int64_t copies, int64_t width) {
    const int64_t size = copies * range.size() * width;
    Real* data = sums_buffer.get(2 * size);
    std::fill(data, data + 2 * size, Real(0));
    return {.dk = data, .dv = data + size, .range = range, .width = width};
  }
};

/// delta = rowsum(dout * out).
template <class T>
void row_dots(const BackwardCall<T>& call, int num_threads) {
  const AttentionProblem<T>& problem = call.problem;
  const int64_t rows = problem.rows();
  const int64_t total = problem.num_pairs() * rows;
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int64_t row = 0; row < total; ++row) {
    const int64_t index = problem.output_index(row / rows, row % rows);
    call.delta[row] = row_dot(call.dout + index, call.out + index, problem.head_dim);
  }
}

/// Copies q and dout of the tile into both layouts, padded with rows of zeros to whole vectors.
template <class T>
void load_tile(BackwardTile<T>& tile, const BackwardCall<T>& call) {
  using Real = typename BackwardTile<T>::Real;
  const AttentionProblem<T>& problem = call.problem;
  const QueryRows& rows = tile.rows;
  const int64_t width = problem.width;
  const int64_t padded = round_up(rows.count, BackwardTile<T>::Lanes::kLanes);
  const int64_t first = rows.pair * problem.rows() + rows.first;
  for (int64_t i = 0; i < padded; ++i) {
    const bool exists = i < rows.count;
    const T* q = call.problem.q + (first + i) * problem.head_dim;
    const T* dout = call.dout + (exists ? problem.output_index(rows.pair, rows.first + i) : 0);
    load_row(tile.rows_buffer[0] + i * width, exists ? q : nullptr, problem);
    load_row(tile.rows_buffer[1] + i * width, exists ? dout : nullptr, problem);
    const Real lse = exists ? call.lse[first + i] : Real(0);
    tile.log2_sum[i] = std::isinf(lse) ? Real(0) : lse * static_cast<Real>(kLog2E);
    tile.delta[i] = exists ? call.delta[first + i] : Real(0);
  }
  const TileRows<T> query{tile.rows_buffer[0], width};
  const TileRows<T> dout{tile.rows_buffer[1], width};
  pack_transposed<T>(tile.queries, query, padded, width);
  pack_transposed<T>(tile.douts, dout, padded, width);
  tile.query_rows = pack_interleaved<T>(tile.interleaved[0], query, padded, width);
  tile.dout_rows = pack_interleaved<T>(tile.interleaved[1], dout, padded, width);
}

/// P and dS of one vector of queries for keys `key` .. `key` + kPack - 1.
template <class T, bool kMasked>
void differentiate_keys(BackwardTile<T>& tile, int64_t key, int64_t vector,
                        typename BackwardTile<T>::Real factor) {
  using Tile = BackwardTile<T>;
  using Lanes = typename Tile::Lanes;
  constexpr int64_t kPack = Tile::Traits::kPack;
  const int64_t lane = vector * Lanes::kLanes;
  typename Lanes::Type dscore[kPack] = {};
  for (int64_t i = 0; i < kPack && key + i < tile.cover.keys; ++i) {
    const int64_t at = (key + i) * kTileRows + lane;
    auto weight =
        Lanes::exp2(Lanes::load(tile.scores + at) * factor - Lanes::load(tile.log2_sum + lane));
    if constexpr (kMasked) {
      const auto number = Lanes::broadcast_integer(key + i);
      const auto visible = (number >= Lanes::load_integers(tile.cover.begin + lane)) &
                           (number < Lanes::load_integers(tile.cover.end + lane));
      weight = visible ? weight : typename Lanes::Type{};
    }
    dscore[i] = weight * (Lanes::load(tile.dweights + at) - Lanes::load(tile.delta + lane));
    Tile::Traits::store_values(tile.weights + at, weight);
    Tile::Traits::store_values(tile.dscores + at, dscore[i]);
  }
  if constexpr (kPack == 2) {
    Tile::Traits::store_interleaved(tile.dscore_columns + key * kTileRows + lane * kPack, dscore[0],
                                    dscore[1]);
  }
}

template <class T>
void differentiate_block(BackwardTile<T>& tile, typename BackwardTile<T>::Real factor) {
  const BlockCover<T>& cover = tile.cover;
  for (int64_t group = 0; group < cover.num_groups(); ++group) {
    const int64_t end = group * kKeyGroup + cover.group_keys(group);
    for (int64_t key = group * kKeyGroup; key < end; key += BackwardTile<T>::Traits::kPack) {
      for (int64_t v = cover.vector_begin[group]; v < cover.vector_end[group]; ++v) {
        if (cover.masked) {
          differentiate_keys<T, true>(tile, key, v, factor);
        } else {
          differentiate_keys<T, false>(tile, key, v, factor);
        }
      }
    }
  }
}

/// sums[key][D] += weights[key][row] rows[row][D] over the covered rows of each group of keys.
template <class T>
void add_to_keys(typename BackwardTile<T>::Real* sums, const BackwardTile<T>& tile,
                 const typename BackwardTile<T>::Stored* weights, const TileRows<T>& rows,
                 int64_t width) {
  using Lanes = typename BackwardTile<T>::Lanes;
  const BlockCover<T>& cover = tile.cover;
  for (int64_t group = 0; group < cover.num_groups(); ++group) {
    const int64_t first = cover.vector_begin[group] * Lanes::kLanes;
    const int64_t last = cover.vector_end[group] * Lanes::kLanes;
    if (first >= last) continue;
    tile_product<T, TileLayout::by_rows>(
        {.a = weights + group * kKeyGroup * kTileRows + first,
         .a_stride = kTileRows,
         .b = rows.data + first / BackwardTile<T>::Traits::kPack * rows.stride,
         .b_stride = rows.stride,
         .c = sums + group * kKeyGroup * width,
         .c_stride = width,
         .rows = cover.group_keys(group),
         .vectors = width / Lanes::kLanes,
         .sum = last - first,
         .accumulate = true});
  }
}

/// dq[row][D] += dS[row][key] k[key][D] over the covered keys of each vector of rows.
template <class T>
void add_to_queries(BackwardTile<T>& tile, const TileRows<T>& keys, int64_t width) {
  using Lanes = typename BackwardTile<T>::Lanes;
  constexpr int64_t kPack = BackwardTile<T>::Traits::kPack;
  for (int64_t vector = 0; vector < tile.cover.vectors; ++vector) {
    const int64_t begin = tile.cover.key_begin[vector];
    const int64_t end = tile.cover.key_end[vector];
    if (begin >= end) continue;
    tile_product<T, TileLayout::by_columns>(
        {.a = tile.dscore_columns + begin * kTileRows + vector * Lanes::kLanes * kPack,
         .a_stride = kTileRows * kPack,
         .b = keys.data + begin / kPack * keys.stride,
         .b_stride = keys.stride,
         .c = tile.dq + vector * Lanes::kLanes * width,
         .c_stride = width,
         .rows = Lanes::kLanes,
         .vectors = width / Lanes::kLanes,
         .sum = round_up(end - begin, kPack),
         .accumulate = true});
  }
}

template <class T>
void backward_block(BackwardTile<T>& tile, const AttentionProblem<T>& problem,
                    const KeyBlock& block, int64_t row,
                    const KeySums<typename BackwardTile<T>::Real>& sums, Pass pass) {
  const auto factor = static_cast<typename BackwardTile<T>::Real>(problem.inputs.scale * kLog2E);
  cover_block(tile.cover, problem.inputs.mask, tile.rows, block);
  const int64_t count = block.end - block.begin;
  const int64_t slot = block.copy - problem.inputs.first_key_copy;
  const int64_t index = problem.key_index(slot, tile.rows.pair, row);
  const int64_t width = problem.width;
  const auto keys = load_rows(problem, problem.k + index, count, tile.key_buffer[0]);
  const auto values = load_rows(problem, problem.v + index, count, tile.key_buffer[1]);
  score_block<T>(tile.cover, keys, tile.queries, width, tile.scores);
  score_block<T>(tile.cover, values, tile.douts, width, tile.dweights);
  differentiate_block(tile, factor);
  if (pass != Pass::queries) {
    const int64_t offset = sums.offset(slot, row);
    add_to_keys(sums.dv + offset, tile, tile.weights, tile.dout_rows, width);
    add_to_keys(sums.dk + offset, tile, tile.dscores, tile.query_rows, width);
  }
  if (pass != Pass::keys) {
    add_to_queries(tile, pack_interleaved<T>(tile.key_buffer[2], keys, count, width), width);
  }
}

/// target[row][d] = factor * sums[row][d] for d < D.
template <class T, class Real>
void store_rows(T* target, const Real* sums, int64_t count, const AttentionProblem<T>& problem,
                double factor) {
  for (int64_t i = 0; i < count; ++i) {
    store_scaled(target + i * problem.head_dim, sums + i * problem.width, static_cast<Real>(factor),
                 problem.head_dim);
  }
}

/// One query tile against the rows `range` of keys.
template <class T>
void backward_tile(BackwardTile<T>& tile, const BackwardCall<T>& call, PositionRange range,
                   const KeySums<typename BackwardTile<T>::Real>& sums, Pass pass) {
  using Real = typename BackwardTile<T>::Real;
  const AttentionProblem<T>& problem = call.problem;
  bool loaded = false;
  if (pass != Pass::keys) std::fill(tile.dq, tile.dq + kTileRows * problem.width, Real(0));
  problem.for_each_block(tile.rows.tile, range, [&](const KeyBlock& block, int64_t row) {
    if (!loaded) load_tile(tile, call);
    loaded = true;
    backward_block(tile, problem, block, row, sums, pass);
  });
  if (pass == Pass::keys) return;
  const int64_t first = tile.rows.pair * problem.rows() + tile.rows.first;
  store_rows(call.dq + first * problem.head_dim, tile.dq, tile.rows.count, problem,
             problem.inputs.scale);
}

/// All tiles of a pair against the rows `range` of keys, whose dk and dv are complete after it.
template <class T>
void backward_keys(BackwardTile<T>& tile, const BackwardCall<T>& call, int64_t pair,
                   PositionRange range, Pass pass) {
  const AttentionProblem<T>& problem = call.problem;
  const int64_t copies = problem.key_copies;
  tile.reserve(problem.width);
  const auto sums = tile.clear_sums(range, copies, problem.width);
  for (int64_t number = 0; number < problem.num_tiles(); ++number) {
    tile.rows = query_rows(problem, pair, number);
    backward_tile(tile, call, range, sums, pass);
  }
  for (int64_t slot = 0; slot < copies; ++slot) {
    const int64_t source = sums.offset(slot, range.begin);
    const int64_t target = problem.key_index(slot, pair, range.begin);
    store_rows(call.dk + target, sums.dk + source, range.size(), problem, problem.inputs.scale);
    store_rows(call.dv + target, sums.dv + source, range.size(), problem, 1.0);
  }
}

/// One task per (sequence, group) pair: five products per key block.
template <class T>
void backward_by_pairs(const BackwardCall<T>& call, int num_threads) {
  const int64_t num_pairs = call.problem.num_pairs();
#pragma omp parallel for schedule(dynamic) num_threads(num_threads)
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    thread_local BackwardTile<T> tile;
    backward_keys(tile, call, pair, call.problem.all_keys, Pass::both);
  }
}

/// Few pairs, many threads: dq by query tiles, then dk and dv by chunks of keys. Scores are made
/// twice (seven products), but every sum runs in the same order as above: the same bits.
template <class T>
void backward_by_tiles(const BackwardCall<T>& call, int num_threads) {
  const AttentionProblem<T>& problem = call.problem;
  const int64_t num_tiles = problem.num_tiles();
  const int64_t num_query_tasks = num_tiles * problem.num_pairs();
  const int64_t num_key_tasks = num_key_chunks(problem) * problem.num_pairs();
#pragma omp parallel for schedule(dynamic) num_threads(num_threads)
  for (int64_t task = 0; task < num_key_tasks + num_query_tasks; ++task) {
    thread_local BackwardTile<T> tile;
    if (task < num_key_tasks) {  // the larger tasks first; early chunks are seen by most tiles
      const PositionRange chunk = key_chunk(problem, task / problem.num_pairs());
      backward_keys(tile, call, task % problem.num_pairs(), chunk, Pass::keys);
    } else {
      const int64_t number = num_tiles - 1 - (task - num_key_tasks) / problem.num_pairs();
      tile.reserve(problem.width);
      tile.rows = query_rows(problem, task % problem.num_pairs(), number);
      backward_tile(tile, call, problem.all_keys, {}, Pass::queries);
    }
  }
}

template <class T>
void backward(const Backend::AttentionBackward& arguments, const AttentionInputs& inputs,
              int num_threads) {
  const BackwardCall<T> call(arguments, inputs);
  row_dots(call, num_threads);
  // Products on the busiest thread: 5 per pair it gets, or its share of 7 per pair.
  const int64_t num_pairs = call.problem.num_pairs();
  const int64_t pairs_per_thread = (num_pairs + num_threads - 1) / num_threads;
  if (5 * pairs_per_thread * num_threads <= 7 * num_pairs) {
    backward_by_pairs(call, num_threads);
  } else {
    backward_by_tiles(call, num_threads);
  }
}

}  // namespace

void cpu_attention_backward(const Backend::AttentionBackward& arguments,
                            const AttentionInputs& inputs, int num_threads) {
  check(inputs.scale > 0.0, "the scale of attention must be positive: ", inputs.scale);
  const int threads = num_threads > 0 ? num_threads : omp_get_max_threads();
  dispatch_float(inputs.q.dtype, [&]<class T>() { backward<T>(arguments, inputs, threads); });
}

void CpuBackend::attention_backward_impl(const AttentionBackward& arguments,
                                         const AttentionInputs& inputs) {
  cpu_attention_backward(arguments, inputs, num_threads_);
}

}  // namespace phalanx
