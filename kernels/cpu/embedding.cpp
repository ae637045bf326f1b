// Embedding: every id's row of the table, repeated for all K copies.
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"

namespace phalanx {

void CpuBackend::embedding_forward_impl(const Tensor& y, const Tensor& table, const Tensor& ids,
                                        int64_t vocab_begin) {
  const int64_t tokens = ids.numel();
  if (tokens == 0) return;
  const int64_t copies = y.shape.rows() / tokens;
  const int64_t row_bytes = table.shape.back() * dtype_bytes(table.dtype);
  const int64_t vocab = table.shape.rows();
  const auto* id = ids.as<int32_t>();
  auto* out = static_cast<char*>(y.data);
  const auto* rows = static_cast<const char*>(table.data);
  const int64_t grain = row_grain(copies * table.shape.back());
  parallel_ranges(num_threads_, tokens, grain, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin * copies; row < end * copies; ++row) {
      const int64_t local = id[row / copies] - vocab_begin;
      char* target = out + row * row_bytes;
      if (0 <= local && local < vocab)
        std::memcpy(target, rows + local * row_bytes, static_cast<size_t>(row_bytes));
      else
        std::memset(target, 0, static_cast<size_t>(row_bytes));
    }
  });
}

void CpuBackend::embedding_backward_impl(const Tensor& dtable, const Tensor& dy, const Tensor& ids,
                                         int64_t vocab_begin) {
  const int64_t tokens = ids.numel();
  if (tokens == 0) return;
  dispatch_float(dy.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t copies = dy.shape.rows() / tokens;
    const int64_t width = dy.shape.back();
    const int64_t vocab = dtable.shape.rows();
    const auto* id = ids.as<int32_t>();
    const T* in = dy.as<T>();
    Acc* table = dtable.as<Acc>();
    // Threads own columns, not ids: balanced whatever the ids are, and each element sees its tokens
    // in the same order on any number of threads.
    parallel_ranges(num_threads_, width, 16, [=](int64_t begin, int64_t end) {
      for (int64_t token = 0; token < tokens; ++token) {
        const int64_t local = id[token] - vocab_begin;
        if (local < 0 || local >= vocab) continue;
        Acc* target = table + local * width;
        for (int64_t k = 0; k < copies; ++k) {
          const T* source = in + (token * copies + k) * width;
#pragma omp simd
          for (int64_t i = begin; i < end; ++i) target[i] += source[i];
        }
      }
    });
  });
}

}  // namespace phalanx
