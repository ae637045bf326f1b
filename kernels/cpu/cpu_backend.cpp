// CpuBackend: memory and element-wise basics.
#include "kernels/cpu/cpu_backend.h"

#include <sys/mman.h>

#include <cstring>

#include "kernels/base/arena.h"
#include "kernels/cpu/parallel.h"

namespace phalanx {
namespace {

constexpr int64_t kHugePageBytes = int64_t{2} << 20;

int64_t round_up(int64_t bytes, int64_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

/// Fresh pages are zero, and each is placed near the thread that touches it first. Huge pages,
/// because training walks through gigabytes and small pages overflow the TLB.
std::shared_ptr<void> allocate_pages(int64_t bytes) {
  const int64_t size = round_up(bytes, kHugePageBytes);
  const auto mapped_bytes = static_cast<size_t>(size + kHugePageBytes);  // room to align
  void* mapped = mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED)
    fail("cannot map ", bytes, " bytes of host memory: ", std::strerror(errno),
         "; use a smaller micro-batch or more ranks");
  const auto past_page = static_cast<int64_t>(reinterpret_cast<uintptr_t>(mapped) % kHugePageBytes);
  auto* block = static_cast<char*>(mapped) + (past_page == 0 ? 0 : kHugePageBytes - past_page);
  madvise(block, static_cast<size_t>(size), MADV_HUGEPAGE);  // advice only: may be refused
  return {block, [mapped, mapped_bytes](void*) { munmap(mapped, mapped_bytes); }};
}

}  // namespace

CpuBackend::CpuBackend(int num_threads)
    : num_threads_(num_threads > 0 ? num_threads : omp_get_max_threads()), matmul_(num_threads_) {}

CpuBackend::~CpuBackend() = default;

std::shared_ptr<void> CpuBackend::allocate(int64_t bytes) {
  check(bytes >= 0, "cannot allocate ", bytes, " bytes");
  if (bytes >= kHugePageBytes) return allocate_pages(bytes);
  const auto size = static_cast<size_t>(round_up(std::max<int64_t>(bytes, 1), Arena::kAlignment));
  void* block = std::aligned_alloc(Arena::kAlignment, size);
  if (block == nullptr) fail("cannot allocate ", bytes, " bytes of host memory");
  std::memset(block, 0, size);
  return {block, [](void* memory) { std::free(memory); }};
}

void CpuBackend::upload_impl(const Tensor& target, const void* source) {
  if (target.bytes() > 0) std::memcpy(target.data, source, static_cast<size_t>(target.bytes()));
}

void CpuBackend::upload_columns_impl(const Tensor& target, int64_t column, int64_t columns,
                                     const void* source) {
  const int64_t element = dtype_bytes(target.dtype);
  auto* to = static_cast<char*>(target.data) + column * element;
  const auto* from = static_cast<const char*>(source);
  for (int64_t row = 0; row < target.shape[0]; ++row)
    std::memcpy(to + row * target.shape[1] * element, from + row * columns * element,
                static_cast<size_t>(columns * element));
}

void CpuBackend::download_impl(void* target, const Tensor& source) {
  if (source.bytes() > 0) std::memcpy(target, source.data, static_cast<size_t>(source.bytes()));
}

void CpuBackend::zero_impl(const Tensor& y) {
  auto* bytes = static_cast<char*>(y.data);
  parallel_ranges(num_threads_, y.bytes(), kElementGrain, [&](int64_t begin, int64_t end) {
    std::memset(bytes + begin, 0, static_cast<size_t>(end - begin));
  });
}

void CpuBackend::add_impl(const Tensor& y, const Tensor& a, const Tensor& b) {
  dispatch_float(y.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    T* out = y.as<T>();
    const T* left = a.as<T>();
    const T* right = b.as<T>();
    parallel_ranges(num_threads_, y.numel(), kElementGrain, [=](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) out[i] = static_cast<Acc>(left[i]) + right[i];
    });
  });
}

void CpuBackend::scale_impl(const Tensor& y, double factor) {
  dispatch_float(y.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    T* out = y.as<T>();
    const auto by = static_cast<Acc>(factor);
    parallel_ranges(num_threads_, y.numel(), kElementGrain, [=](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) out[i] = static_cast<Acc>(out[i]) * by;
    });
  });
}

void CpuBackend::fill_impl(const Tensor& y, double value) {
  dispatch_float(y.dtype, [&]<class T>() {
    T* out = y.as<T>();
    const auto rounded = static_cast<T>(static_cast<Accumulator<T>>(value));
    parallel_ranges(num_threads_, y.numel(), kElementGrain, [=](int64_t begin, int64_t end) {
      std::fill(out + begin, out + end, rounded);
    });
  });
}

void CpuBackend::matmul_impl(const Tensor& c, const Tensor& a, const Tensor& b,
                             const MatmulOptions& options) {
  matmul_.run(c.as_matrix(), a.as_matrix(), b.as_matrix(), options);
}

}  // namespace phalanx
