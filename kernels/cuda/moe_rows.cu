// Rows of a mixture of experts: sorting choices by expert, and moving, adding up and scaling rows,
// one warp per row.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/radix_sort.h"
#include "kernels/cuda/row_sums.h"

namespace phalanx {
namespace {

__global__ void copy_keys_kernel(int32_t* keys, const int32_t* experts, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) keys[i] = experts[i];
}

/// Where each choice went in the sort by expert.
__global__ void place_kernel(int32_t* places, const int32_t* origins, int64_t count) {
  const int64_t place = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (place < count) places[origins[place]] = static_cast<int32_t>(place);
}

/// counts[e] = how many of `count` sorted keys are e.
__global__ void count_experts_kernel(int64_t* counts, const int32_t* keys, int64_t count,
                                     int64_t experts) {
  const int64_t expert = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (expert >= experts) return;
  const auto first_at_least = [=](int64_t key) {
    int64_t begin = 0;
    int64_t end = count;
    while (begin < end) {
      const int64_t middle = begin + (end - begin) / 2;
      if (keys[middle] < key)
        begin = middle + 1;
      else
        end = middle;
    }
    return begin;
  };
  counts[expert] = first_at_least(expert + 1) - first_at_least(expert);
}

/// A warp per row of x, which it reads once for all its copies.
template <int n, class T>
__global__ void permute_rows_kernel(T* y, const T* x, const int32_t* places, int64_t rows,
                                    int64_t copies, int64_t width) {
  const int64_t row = own_row();
  if (row >= rows) return;
  for (int64_t column = int64_t{threadIdx.x} * n; column < width; column += kWarp * n) {
    const Pack<T, n> pack = load_pack<n>(x + row * width + column);
    for (int64_t j = row * copies; j < (row + 1) * copies; ++j)
      store_pack(y + places[j] * width + column, pack);
  }
}

template <class T>
struct CombinedRows {
  T* y;
  const T* x;
  const int32_t* places;
  const Accumulator<T>* added;  // or null
  int64_t rows, terms, width;
};

template <int n, class T>
__global__ void combine_rows_kernel(CombinedRows<T> of) {
  const int64_t row = own_row();
  if (row >= of.rows) return;
  for (int64_t column = int64_t{threadIdx.x} * n; column < of.width; column += kWarp * n) {
    Accumulator<T> sums[n] = {};
    if (of.added != nullptr) load<n>(sums, of.added + row * of.width + column);
    for (int64_t j = row * of.terms; j < (row + 1) * of.terms; ++j) {
      Accumulator<T> values[n];
      load<n>(values, of.x + of.places[j] * of.width + column);
#pragma unroll
      for (int i = 0; i < n; ++i) sums[i] += values[i];
    }
    store<n>(of.y + row * of.width + column, sums);
  }
}

/// y may be x.
template <int n, class T>
__global__ void scale_rows_kernel(T* y, const T* x, const Accumulator<T>* factors, int64_t rows,
                                  int64_t width) {
  const int64_t row = own_row();
  if (row >= rows) return;
  const Accumulator<T> factor = factors[row];
  for (int64_t column = int64_t{threadIdx.x} * n; column < width; column += kWarp * n) {
    Accumulator<T> values[n];
    load<n>(values, x + row * width + column);
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] *= factor;
    store<n>(y + row * width + column, values);
  }
}

template <int n, class T>
__global__ void row_dots_kernel(Accumulator<T>* dots, const T* a, const T* b, int64_t rows,
                                int64_t width) {
  const int64_t row = own_row();
  if (row >= rows) return;
  Accumulator<T> sum{0};
  for (int64_t column = int64_t{threadIdx.x} * n; column < width; column += kWarp * n) {
    Accumulator<T> left[n], right[n];
    load<n>(left, a + row * width + column);
    load<n>(right, b + row * width + column);
#pragma unroll
    for (int i = 0; i < n; ++i) sum += left[i] * right[i];
  }
  sum = warp_sum(sum);
  if (threadIdx.x == 0) dots[row] = sum;
}

/// Calls body.operator()<n, T>(shape) with elements per access of rows at `pointers`, and a warp
/// per row of `rows`.
template <class Body>
void dispatch_rows(const Tensor& rows, std::initializer_list<const void*> pointers,
                   const Body& body) {
  const LaunchShape shape = row_shape(rows.shape.rows(), kWarp);
  dispatch_float(rows.dtype, [&]<class T>() {
    dispatch_packs<T>(rows.shape.back() % kPack<T> == 0 && starts_packs(pointers),
                      [&]<int n>() { body.template operator()<n, T>(shape); });
  });
}

}  // namespace

void CudaBackend::sort_by_expert_impl(const Tensor& places, const Tensor& counts,
                                      const Tensor& experts) {
  const int64_t count = experts.numel();
  const int64_t num_experts = counts.numel();
  SortBuffers sorted = sort_buffers(workspace(sort_bytes(count)), count);
  launch(copy_keys_kernel, one_thread_each(count), stream_, sorted.keys, experts.as<int32_t>(),
         count);
  sort_keys(sorted, count, std::max<int64_t>(num_experts - 1, 0), stream_);
  launch(place_kernel, one_thread_each(count), stream_, places.as<int32_t>(), sorted.origins,
         count);
  launch(count_experts_kernel, one_thread_each(num_experts), stream_, counts.as<int64_t>(),
         sorted.keys, count, num_experts);
}

void CudaBackend::permute_rows_impl(const Tensor& y, const Tensor& x, const Tensor& places) {
  dispatch_rows(x, {y.data, x.data}, [&]<int n, class T>(const LaunchShape& shape) {
    launch(permute_rows_kernel<n, T>, shape, stream_, y.as<T>(), x.as<T>(), places.as<int32_t>(),
           places.shape[0], places.shape[1], x.shape.back());
  });
}

void CudaBackend::combine_rows_impl(const Tensor& y, const Tensor& x, const Tensor& places,
                                    const Tensor& added) {
  dispatch_rows(y, {y.data, x.data, added.data}, [&]<int n, class T>(const LaunchShape& shape) {
    const CombinedRows<T> of{.y = y.as<T>(),
                             .x = x.as<T>(),
                             .places = places.as<int32_t>(),
                             .added = added ? added.as<Accumulator<T>>() : nullptr,
                             .rows = y.shape.rows(),
                             .terms = places.shape[1],
                             .width = y.shape.back()};
    launch(combine_rows_kernel<n, T>, shape, stream_, of);
  });
}

void CudaBackend::scale_rows_impl(const Tensor& y, const Tensor& x, const Tensor& factors) {
  dispatch_rows(y, {y.data, x.data}, [&]<int n, class T>(const LaunchShape& shape) {
    launch(scale_rows_kernel<n, T>, shape, stream_, y.as<T>(), x.as<T>(),
           factors.as<Accumulator<T>>(), y.shape.rows(), y.shape.back());
  });
}

void CudaBackend::row_dots_impl(const Tensor& dots, const Tensor& a, const Tensor& b) {
  dispatch_rows(a, {a.data, b.data}, [&]<int n, class T>(const LaunchShape& shape) {
    launch(row_dots_kernel<n, T>, shape, stream_, dots.as<Accumulator<T>>(), a.as<T>(), b.as<T>(),
           a.shape.rows(), a.shape.back());
  });
}

}  // namespace phalanx
