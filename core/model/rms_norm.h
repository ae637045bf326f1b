// RmsNorm: one RMSNorm of the residual stream's width, with its weight.
#pragma once

#include <string>

#include "kernels/base/arena.h"
#include "parallel/tensor_parallel.h"

namespace phalanx {

/// y = x / sqrt(mean(x^2) + eps) * weight, over rows of H. One micro-batch in `Saved`.
class RmsNorm {
 public:
  struct Saved {
    Tensor x;     // [rows, H]; kept by whoever made it
    Tensor rstd;  // [rows]
  };
  struct Init {
    int64_t width;
    double epsilon;
    double weight = 1.0;
  };
  RmsNorm(const TensorParallelContext& context, const std::string& name, const Init& init);

  void forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory) const;
  /// sum = a + b and y = norm(sum), in one pass over memory.
  void add_forward(const Tensor& y, const Tensor& sum, const Tensor& a, const Tensor& b,
                   Saved& saved, Memory& memory) const;
  /// dx = norm' dy (+ dresidual, which may be dx or dy).
  void backward(const Tensor& dx, const Tensor& dy, const Saved& saved,
                const Tensor& dresidual = {});

 private:
  Backend& ops_;
  double epsilon_;
  Parameter* weight_;
};

}  // namespace phalanx
