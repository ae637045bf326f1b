// Mlp: the SwiGLU feed-forward, down(silu(gate(x)) * up(x)).
#pragma once

#include <string>

#include "core/model/layer_context.h"
#include "kernels/base/arena.h"
#include "parallel/tensor_parallel.h"

namespace phalanx {

/// Row-wise: any number of rows, whatever copies they are.
class Mlp {
 public:
  struct Saved {
    ColumnParallelLinear::Saved gate_up_linear;
    Tensor gate_up;  // [rows, 2F/tp]
    RowParallelLinear::Saved down_linear;
  };
  explicit Mlp(const LayerContext& context);

  /// y, x [rows(/tp with sequence parallel), H].
  void forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory) const;
  void backward(const Tensor& dx, const Tensor& dy, const Saved& saved, Memory& memory);

 private:
  Backend& ops_;
  int64_t row_factor_;  // rows inside the tensor-parallel region per row outside
  ColumnParallelLinear gate_up_;
  RowParallelLinear down_;
};

}  // namespace phalanx
