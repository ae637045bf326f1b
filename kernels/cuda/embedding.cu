// Embedding: every id's row of the table, repeated for all K copies. Backward, tokens are sorted by
// id, so that each row of the table is summed by one warp, or one block per part of its columns, in
// the order of the tokens.
#include <limits>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/radix_sort.h"
#include "kernels/cuda/row_sums.h"

namespace phalanx {
namespace {

/// Tokens and the rows of the table that they name; tokens of other ranks name none.
struct Tokens {
  const int32_t* ids;
  int64_t count, copies, vocab_begin, vocab;

  /// The row of the table, or `vocab` if that is another rank's.
  __device__ int64_t row(int64_t token) const {
    const int64_t local = ids[token] - vocab_begin;
    return 0 <= local && local < vocab ? local : vocab;
  }
};

Tokens tokens_of(const Tensor& ids, const Tensor& rows, const Tensor& table, int64_t vocab_begin) {
  return {.ids = ids.as<int32_t>(),
          .count = ids.numel(),
          .copies = rows.shape.rows() / ids.numel(),
          .vocab_begin = vocab_begin,
          .vocab = table.shape.rows()};
}

/// A warp per token.
template <int n, class T>
__global__ void embedding_forward_kernel(T* y, const T* table, Tokens tokens, int64_t width) {
  const int64_t token = own_row();
  if (token >= tokens.count) return;
  const int64_t source = tokens.row(token);
  for (int64_t column = int64_t{threadIdx.x} * n; column < width; column += kWarp * n) {
    Pack<T, n> pack{};
    if (source < tokens.vocab) pack = load_pack<n>(table + source * width + column);
    for (int64_t k = 0; k < tokens.copies; ++k)
      store_pack(y + (token * tokens.copies + k) * width + column, pack);
  }
}

__global__ void token_rows_kernel(int32_t* keys, Tokens tokens) {
  const int64_t token = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (token < tokens.count) keys[token] = static_cast<int32_t>(tokens.row(token));
}

/// Sorted tokens (`rows` of the table, ascending, and the tokens) and what to sum where.
template <class T>
struct EmbeddingGradient {
  Accumulator<T>* dtable;
  const T* dy;
  const int32_t* rows;
  const int32_t* origins;
  int64_t count, copies, width, vocab;

  /// sums += columns [column, column + n) of the copies of the token at sorted place `place`.
  template <int n>
  __device__ void add_token(Accumulator<T> (&sums)[n], int64_t place, int64_t column) const {
    const T* source = dy + origins[place] * copies * width + column;
    for (int64_t k = 0; k < copies; ++k) {
      Accumulator<T> values[n];
      load<n>(values, source + k * width);
#pragma unroll
      for (int i = 0; i < n; ++i) sums[i] += values[i];
    }
  }
};

/// A row of the table that more tokens name is summed by blocks. Estimated, not measured: so many
/// tokens take a warp about as long as a block takes to start.
constexpr int64_t kLong = 16;

/// A warp per sorted place; the warp of a row's first token sums it.
template <int n, class T>
__global__ void sum_short_rows_kernel(EmbeddingGradient<T> of) {
  const int64_t begin = own_row();
  if (begin >= of.count) return;
  const int64_t row = of.rows[begin];
  if (row >= of.vocab || (begin > 0 && of.rows[begin - 1] == row)) return;
  int64_t end = begin + 1;
  while (end < of.count && end - begin <= kLong && of.rows[end] == row) ++end;
  if (end - begin > kLong) return;
  for (int64_t column = int64_t{threadIdx.x} * n; column < of.width; column += kWarp * n) {
    Accumulator<T>* target = of.dtable + row * of.width + column;
    Accumulator<T> sums[n];
    load<n>(sums, target);
    for (int64_t place = begin; place < end; ++place) of.add_token(sums, place, column);
    store<n>(target, sums);
  }
}

constexpr int kBlockWarps = 8;

/// The first place in [begin, end) whose row is `row` or more (`beyond`: more), or end.
__device__ int64_t lower_place(const int32_t* rows, int64_t begin, int64_t end, int64_t row,
                               bool beyond) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (rows[middle] < row || (beyond && rows[middle] == row))
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

/// Block (x, y): sorted place x * kLong and part y of the columns. A row of more than kLong tokens
/// holds such places; the block of its first one sums it. Warps take every kBlockWarps-th token.
template <int n, class T>
__global__ void sum_long_rows_kernel(EmbeddingGradient<T> of) {
  using Acc = Accumulator<T>;
  __shared__ Acc partial[kBlockWarps][kWarp * n];
  const int64_t at = int64_t{blockIdx.x} * kLong;
  const int64_t row = of.rows[at];
  if (row >= of.vocab || (at > 0 && of.rows[at - kLong] == row)) return;
  const int64_t begin = lower_place(of.rows, at > 0 ? at - kLong : 0, at, row, false);
  if (begin + kLong >= of.count || of.rows[begin + kLong] != row) return;
  const int64_t end = lower_place(of.rows, begin + kLong, of.count, row, true);
  const auto lane = threadIdx.x % kWarp;
  const int64_t column = (int64_t{blockIdx.y} * kWarp + lane) * n;
  Acc sums[n] = {};
  if (column < of.width)
    for (int64_t place = begin + threadIdx.x / kWarp; place < end; place += kBlockWarps)
      of.add_token(sums, place, column);
#pragma unroll
  for (int i = 0; i < n; ++i) partial[threadIdx.x / kWarp][lane * n + i] = sums[i];
  __syncthreads();
  for (int64_t i = threadIdx.x; i < kWarp * n; i += blockDim.x) {
    const int64_t target = int64_t{blockIdx.y} * kWarp * n + i;
    if (target >= of.width) continue;
    Acc sum = of.dtable[row * of.width + target];
    for (int warp = 0; warp < kBlockWarps; ++warp) sum += partial[warp][i];
    of.dtable[row * of.width + target] = sum;
  }
}

}  // namespace

void CudaBackend::embedding_forward_impl(const Tensor& y, const Tensor& table, const Tensor& ids,
                                         int64_t vocab_begin) {
  if (ids.numel() == 0) return;
  const Tokens tokens = tokens_of(ids, y, table, vocab_begin);
  const int64_t width = table.shape.back();
  dispatch_float(table.dtype, [&]<class T>() {
    dispatch_packs<T>(width % kPack<T> == 0 && starts_packs({y.data, table.data}), [&]<int n>() {
      launch(embedding_forward_kernel<n, T>, row_shape(tokens.count, kWarp), stream_, y.as<T>(),
             table.as<T>(), tokens, width);
    });
  });
}

void CudaBackend::embedding_backward_impl(const Tensor& dtable, const Tensor& dy, const Tensor& ids,
                                          int64_t vocab_begin) {
  if (ids.numel() == 0 || dy.numel() == 0) return;
  const Tokens tokens = tokens_of(ids, dy, dtable, vocab_begin);
  check(tokens.vocab < std::numeric_limits<int32_t>::max(), "embedding_backward: dtable ",
        dtable.shape.to_string(), " has more rows than 32-bit ids");
  SortBuffers sorted = sort_buffers(workspace(sort_bytes(tokens.count)), tokens.count);
  launch(token_rows_kernel, one_thread_each(tokens.count), stream_, sorted.keys, tokens);
  sort_keys(sorted, tokens.count, tokens.vocab, stream_);
  dispatch_float(dy.dtype, [&]<class T>() {
    const int64_t width = dy.shape.back();
    const EmbeddingGradient<T> of{.dtable = dtable.as<Accumulator<T>>(),
                                  .dy = dy.as<T>(),
                                  .rows = sorted.keys,
                                  .origins = sorted.origins,
                                  .count = tokens.count,
                                  .copies = tokens.copies,
                                  .width = width,
                                  .vocab = tokens.vocab};
    const bool in_packs = width % kPack<T> == 0 && starts_packs({dtable.data, dy.data});
    dispatch_packs<T>(in_packs, [&]<int n>() {
      launch(sum_short_rows_kernel<n, T>, row_shape(tokens.count, kWarp), stream_, of);
      LaunchShape blocks = one_thread_each((tokens.count + kLong - 1) / kLong, 1);
      blocks.block = dim3(kBlockWarps * kWarp);
      blocks.grid.y = static_cast<unsigned>((width + kWarp * n - 1) / (kWarp * n));
      launch(sum_long_rows_kernel<n, T>, blocks, stream_, of);
    });
  });
}

}  // namespace phalanx
