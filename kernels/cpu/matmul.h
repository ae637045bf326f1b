// MatmulEngine: all matrix products of the CPU backend, on oneDNN. The only file that knows it.
#pragma once

#include <memory>

#include "kernels/op_arguments.h"

namespace phalanx {

/// C = op(A) op(B) (+ C) for f32, bf16 (f32 accumulation, C f32 or bf16) and f64. Primitives are
/// made once per shape and cached. `run` uses `num_threads` when called outside a parallel
/// region, and just the calling thread inside one.
class MatmulEngine {
 public:
  /// `num_threads` per product outside parallel regions; 0 means OpenMP's default.
  explicit MatmulEngine(int num_threads = 0);
  ~MatmulEngine();
  MatmulEngine(const MatmulEngine&) = delete;
  MatmulEngine& operator=(const MatmulEngine&) = delete;

  void run(const Tensor& c, const Tensor& a, const Tensor& b, const MatmulOptions& options);

 private:
  struct Cache;
  std::unique_ptr<Cache> cache_;
};

}  // namespace phalanx
