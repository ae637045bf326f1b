// Element-wise basics: zero, fill, scale, add, copies between dtypes, and of one PHD copy out of
// and into [S, B, K, H].
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/packs.h"

namespace phalanx {
namespace {

template <class To, class From>
struct Convert {
  To* y;
  const From* x;

  template <int n>
  __device__ void run(int64_t i) const {
    Accumulator<From> in[n];
    Accumulator<To> out[n];
    load<n>(in, x + i);
#pragma unroll
    for (int j = 0; j < n; ++j) out[j] = static_cast<Accumulator<To>>(in[j]);
    store<n>(y + i, out);
  }
};

/// y = a + b; y may be a or b.
template <class T>
struct Add {
  T* y;
  const T* a;
  const T* b;

  template <int n>
  __device__ void run(int64_t i) const {
    Accumulator<T> left[n];
    Accumulator<T> right[n];
    load<n>(left, a + i);
    load<n>(right, b + i);
#pragma unroll
    for (int j = 0; j < n; ++j) left[j] += right[j];
    store<n>(y + i, left);
  }
};

template <class T>
struct Scale {
  T* y;
  Accumulator<T> factor;

  template <int n>
  __device__ void run(int64_t i) const {
    Accumulator<T> values[n];
    load<n>(values, y + i);
#pragma unroll
    for (int j = 0; j < n; ++j) values[j] *= factor;
    store<n>(y + i, values);
  }
};

template <class T>
struct Fill {
  T* y;
  Accumulator<T> value;

  template <int n>
  __device__ void run(int64_t i) const {
    Accumulator<T> values[n];
#pragma unroll
    for (int j = 0; j < n; ++j) values[j] = value;
    store<n>(y + i, values);
  }
};

/// Rows of `one` [rows, width] beside rows of `all` [rows, copies, width], at its copy 0.
template <class T>
struct CopyRows {
  int64_t copies;
  int64_t width;

  /// Index in `all` of element i of `one`.
  __device__ int64_t within_all(int64_t i) const {
    const int64_t row = i / width;
    return row * (copies - 1) * width + i;
  }
};

template <class T>
struct SelectCopy {
  T* one;
  const T* all;
  CopyRows<T> rows;

  template <int n>
  __device__ void run(int64_t i) const {
    store_pack(one + i, load_pack<n>(all + rows.within_all(i)));
  }
};

template <class T>
struct AccumulateCopy {
  T* all;
  const T* one;
  CopyRows<T> rows;

  template <int n>
  __device__ void run(int64_t i) const {
    T* target = all + rows.within_all(i);
    Accumulator<T> sum[n];
    Accumulator<T> added[n];
    load<n>(sum, target);
    load<n>(added, one + i);
#pragma unroll
    for (int j = 0; j < n; ++j) sum[j] += added[j];
    store<n>(target, sum);
  }
};

}  // namespace

void CudaBackend::zero_impl(const Tensor& y) {
  if (y.bytes() > 0)
    cuda_check(cudaMemsetAsync(y.data, 0, static_cast<size_t>(y.bytes()), stream_),
               "cudaMemsetAsync");
}

void CudaBackend::copy_impl(const Tensor& y, const Tensor& x) {
  if (y.numel() == 0) return;
  if (y.dtype == x.dtype) {
    cuda_check(cudaMemcpyAsync(y.data, x.data, static_cast<size_t>(y.bytes()),
                               cudaMemcpyDeviceToDevice, stream_),
               "cudaMemcpyAsync");
    return;
  }
  dispatch_float(y.dtype, [&]<class To>() {
    dispatch_float(x.dtype, [&]<class From>() {
      using Narrow = std::conditional_t<(sizeof(To) < sizeof(From)), To, From>;
      const Convert<To, From> convert{y.as<To>(), x.as<From>()};
      launch_packs<Narrow>(convert, y.numel(), starts_packs({y.data, x.data}), stream_);
    });
  });
}

void CudaBackend::add_impl(const Tensor& y, const Tensor& a, const Tensor& b) {
  dispatch_float(y.dtype, [&]<class T>() {
    const Add<T> add{y.as<T>(), a.as<T>(), b.as<T>()};
    launch_packs<T>(add, y.numel(), starts_packs({y.data, a.data, b.data}), stream_);
  });
}

void CudaBackend::scale_impl(const Tensor& y, double factor) {
  dispatch_float(y.dtype, [&]<class T>() {
    const Scale<T> scale{y.as<T>(), static_cast<Accumulator<T>>(factor)};
    launch_packs<T>(scale, y.numel(), starts_packs({y.data}), stream_);
  });
}

void CudaBackend::fill_impl(const Tensor& y, double value) {
  dispatch_float(y.dtype, [&]<class T>() {
    const Fill<T> fill{y.as<T>(), static_cast<Accumulator<T>>(value)};
    launch_packs<T>(fill, y.numel(), starts_packs({y.data}), stream_);
  });
}

void CudaBackend::select_copy_impl(const Tensor& y, const Tensor& x, int64_t copy) {
  dispatch_float(x.dtype, [&]<class T>() {
    const int64_t width = x.shape[3];
    const SelectCopy<T> select{y.as<T>(), x.as<T>() + copy * width, {x.shape[2], width}};
    const bool in_packs = width % kPack<T> == 0 && starts_packs({y.data, x.data});
    launch_packs<T>(select, y.numel(), in_packs, stream_);
  });
}

void CudaBackend::accumulate_copy_impl(const Tensor& dx, const Tensor& dy, int64_t copy) {
  dispatch_float(dx.dtype, [&]<class T>() {
    const int64_t width = dx.shape[3];
    const AccumulateCopy<T> add{dx.as<T>() + copy * width, dy.as<T>(), {dx.shape[2], width}};
    const bool in_packs = width % kPack<T> == 0 && starts_packs({dx.data, dy.data});
    launch_packs<T>(add, dy.numel(), in_packs, stream_);
  });
}

}  // namespace phalanx
