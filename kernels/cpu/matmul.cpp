// Matrix products: f32 by oneDNN's sgemm, bf16 by its matmul primitives, f64 by plain loops.
#include "kernels/cpu/matmul.h"

#include <omp.h>

#include <bit>
#include <cstdlib>
#include <cstring>
#include <dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace phalanx {
namespace {

/// C[m, n] = op(A) op(B) and what makes two products share a primitive.
struct Product {
  int64_t m, n, k;
  bool a_transposed, b_transposed, accumulate;
  bool float_result;  // C is f32 while A and B are bf16
  int threads;        // a primitive's schedule is made for this many

  bool operator==(const Product&) const = default;
};

struct ProductHash {
  size_t operator()(const Product& p) const {
    uint64_t hash = 0;
    const auto mix = [&hash](int64_t value) {
      hash = (std::rotl(hash, 23) ^ static_cast<uint64_t>(value)) * 0x9E3779B97F4A7C15ULL;
    };
    mix(p.m);
    mix(p.n);
    mix(p.k);
    mix(p.a_transposed + 2 * p.b_transposed + 4 * p.accumulate + 8 * p.float_result +
        16 * p.threads);
    return hash;
  }
};

/// Grows, never shrinks; aligned for vector loads.
class Scratch {
 public:
  void* get(size_t bytes) {
    if (bytes > size_) {
      const size_t rounded = (bytes + 4095) / 4096 * 4096;
      data_.reset(std::aligned_alloc(4096, rounded));
      check(data_ != nullptr, "cannot allocate ", rounded, " bytes for a matrix product");
      size_ = rounded;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> data_;
  size_t size_ = 0;
};

/// oneDNN and OpenMP ask the calling thread how many threads there are; this sets the answer while
/// a product runs.
class ThreadCount {
 public:
  explicit ThreadCount(int threads) : before_(omp_get_max_threads()) {
    if (threads != before_) omp_set_num_threads(threads);
  }
  ~ThreadCount() { omp_set_num_threads(before_); }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_;
};

Product describe(const Tensor& c, const Tensor& a, const MatmulOptions& options, int threads) {
  const bool transposed = options.a == Transpose::yes;
  return {.m = c.shape[0],
          .n = c.shape[1],
          .k = transposed ? a.shape[0] : a.shape[1],
          .a_transposed = transposed,
          .b_transposed = options.b == Transpose::yes,
          .accumulate = options.accumulate == Accumulate::yes,
          .float_result = c.dtype == DType::f32,
          .threads = threads};
}

void multiply_f32(float* c, const float* a, const float* b, const Product& p) {
  const auto status = dnnl_sgemm(p.a_transposed ? 'T' : 'N', p.b_transposed ? 'T' : 'N', p.m, p.n,
                                 p.k, 1.0F, a, p.a_transposed ? p.m : p.k, b,
                                 p.b_transposed ? p.k : p.n, p.accumulate ? 1.0F : 0.0F, c, p.n);
  check(status == dnnl_success, "oneDNN's sgemm failed with status ", static_cast<int>(status),
        " for m, n, k = ", p.m, ", ", p.n, ", ", p.k);
}

/// Rows of C in f64: checks only, so plain loops, ordered for unit strides.
void multiply_f64(double* c, const double* a, const double* b, const Product& p, int64_t row) {
  double* out = c + row * p.n;
  if (!p.accumulate) std::fill(out, out + p.n, 0.0);
  const int64_t a_stride = p.a_transposed ? p.m : 1;
  const double* left = p.a_transposed ? a + row : a + row * p.k;
  if (!p.b_transposed) {
    for (int64_t k = 0; k < p.k; ++k) {
      const double factor = left[k * a_stride];
      for (int64_t j = 0; j < p.n; ++j) out[j] += factor * b[k * p.n + j];
    }
    return;
  }
  for (int64_t j = 0; j < p.n; ++j) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < p.k; ++k) sum += left[k * a_stride] * b[j * p.k + k];
    out[j] += sum;
  }
}

using dnnl::memory;

/// A bf16 product as a oneDNN primitive with the memory objects it runs on.
class Bf16Primitive {
 public:
  Bf16Primitive(const dnnl::engine& engine, const Product& p) {
    const auto layout = [](bool transposed) {
      return transposed ? memory::format_tag::ba : memory::format_tag::ab;
    };
    const memory::desc a({p.m, p.k}, memory::data_type::bf16, layout(p.a_transposed));
    const memory::desc b({p.k, p.n}, memory::data_type::bf16, layout(p.b_transposed));
    const memory::desc c({p.m, p.n},
                         p.float_result ? memory::data_type::f32 : memory::data_type::bf16,
                         memory::format_tag::ab);
    dnnl::primitive_attr attributes;
    // oneDNN's own scratchpad is shared by all threads, with silently wrong results.
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (p.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0F);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::primitive_desc description({a, b, c}, attributes, engine);
    scratch_bytes_ = description.scratchpad_desc().get_size();
    primitive_ = dnnl::matmul(description);
    arguments_ = {{DNNL_ARG_SRC, memory(a, engine, nullptr)},
                  {DNNL_ARG_WEIGHTS, memory(b, engine, nullptr)},
                  {DNNL_ARG_DST, memory(c, engine, nullptr)},
                  {DNNL_ARG_SCRATCHPAD, memory(description.scratchpad_desc(), engine, nullptr)}};
  }

  void run(dnnl::stream& stream, const Tensor& c, const Tensor& a, const Tensor& b,
           Scratch& scratch) {
    arguments_.at(DNNL_ARG_SRC).set_data_handle(a.data);
    arguments_.at(DNNL_ARG_WEIGHTS).set_data_handle(b.data);
    arguments_.at(DNNL_ARG_DST).set_data_handle(c.data);
    arguments_.at(DNNL_ARG_SCRATCHPAD).set_data_handle(scratch.get(scratch_bytes_));
    primitive_.execute(stream, arguments_);
  }

 private:
  dnnl::matmul primitive_;
  std::unordered_map<int, memory> arguments_;
  size_t scratch_bytes_ = 0;
};

}  // namespace

/// One slot per thread, because primitives carry the addresses they run on.
struct MatmulEngine::Cache {
  // Varying row counts (tokens of an expert) would otherwise fill memory with primitives.
  static constexpr size_t kMaxPrimitives = 1024;

  struct Slot {
    std::unordered_map<Product, std::unique_ptr<Bf16Primitive>, ProductHash> primitives;
    Scratch scratch;
    Scratch converted;  // f32 images of bf16 operands where oneDNN has no bf16 product
    std::unique_ptr<dnnl::stream> stream;
  };

  explicit Cache(int num_threads)
      : threads(num_threads > 0 ? num_threads : omp_get_max_threads()),
        engine(dnnl::engine::kind::cpu, 0),
        slots(static_cast<size_t>(std::max(threads, omp_get_num_procs()))) {}

  Slot& slot() {
    const auto thread = static_cast<size_t>(omp_get_thread_num());
    check(thread < slots.size(), "matmul: thread ", thread, " of a team beyond ", slots.size());
    Slot& mine = slots[thread];
    if (mine.stream == nullptr) mine.stream = std::make_unique<dnnl::stream>(engine);
    return mine;
  }

  void multiply_bf16(const Tensor& c, const Tensor& a, const Tensor& b, const Product& p) {
    Slot& mine = slot();
    if (!has_bf16) return multiply_converted(mine, c, a, b, p);
    auto found = mine.primitives.find(p);
    if (found == mine.primitives.end()) {
      if (mine.primitives.size() >= kMaxPrimitives) mine.primitives.clear();
      found = mine.primitives.emplace(p, std::make_unique<Bf16Primitive>(engine, p)).first;
    }
    found->second->run(*mine.stream, c, a, b, mine.scratch);
  }

  /// Processors without AVX-512: bf16 values are exact in f32, so the product runs there.
  void multiply_converted(Slot& mine, const Tensor& c, const Tensor& a, const Tensor& b,
                          const Product& p) {
    const int64_t sizes[] = {a.numel(), b.numel(), p.float_result ? 0 : c.numel()};
    auto* left = static_cast<float*>(
        mine.converted.get(static_cast<size_t>(sizes[0] + sizes[1] + sizes[2]) * sizeof(float)));
    float* right = left + sizes[0];
    float* result = p.float_result ? c.as<float>() : right + sizes[1];
    convert_span(left, a.as<BFloat16>(), sizes[0]);
    convert_span(right, b.as<BFloat16>(), sizes[1]);
    if (p.accumulate && !p.float_result) convert_span(result, c.as<BFloat16>(), sizes[2]);
    multiply_f32(result, left, right, p);
    if (!p.float_result) convert_span(c.as<BFloat16>(), result, sizes[2]);
  }

  static bool probe_bf16(const dnnl::engine& engine) {
    try {
      const Bf16Primitive probe({engine}, {.m = 16,
                                           .n = 16,
                                           .k = 16,
                                           .a_transposed = false,
                                           .b_transposed = false,
                                           .accumulate = false,
                                           .float_result = false,
                                           .threads = 1});
      return true;
    } catch (const dnnl::error& error) {
      return false;
    }
  }

  int threads;
  dnnl::engine engine;
  bool has_bf16 = probe_bf16(engine);
  std::vector<Slot> slots;
};

MatmulEngine::MatmulEngine(int num_threads) : cache_(std::make_unique<Cache>(num_threads)) {}
MatmulEngine::~MatmulEngine() = default;

void MatmulEngine::run(const Tensor& c, const Tensor& a, const Tensor& b,
                       const MatmulOptions& options) {
  const int threads = omp_in_parallel() != 0 ? 1 : cache_->threads;
  const Product p = describe(c, a, options, threads);
  if (p.m == 0 || p.n == 0) return;
  if (p.k == 0) {  // an empty sum; oneDNN refuses empty operands
    if (!p.accumulate) std::memset(c.data, 0, static_cast<size_t>(c.bytes()));
    return;
  }
  const ThreadCount scope(threads);
  if (a.dtype == DType::bf16) return cache_->multiply_bf16(c, a, b, p);
  if (a.dtype == DType::f32) return multiply_f32(c.as<float>(), a.as<float>(), b.as<float>(), p);
  parallel_ranges(threads, p.m, row_grain(p.n * p.k), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      multiply_f64(c.as<double>(), a.as<double>(), b.as<double>(), p, row);
  });
}

}  // namespace phalanx
