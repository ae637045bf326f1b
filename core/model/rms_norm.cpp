// RMSNorm of the residual stream.
#include "core/model/rms_norm.h"

namespace phalanx {

RmsNorm::RmsNorm(const TensorParallelContext& context, const std::string& name, const Init& init)
    : ops_(context.backend), epsilon_(init.epsilon) {
  weight_ = &context.parameters.add({.name = name,
                                     .global_shape = {init.width},
                                     .kind = ParameterKind::norm,
                                     .placement = row_wise_placement(context),
                                     .initialiser = {.stddev = 0.0, .constant = init.weight}});
}

void RmsNorm::forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory) const {
  saved.x = x.as_matrix();
  saved.rstd = memory.saved.tensor("norm.rstd", {x.shape.rows()}, accumulator_dtype(x.dtype));
  ops_.rms_norm_forward(y.as_matrix(), saved.rstd, saved.x, weight_->value, epsilon_);
}

void RmsNorm::add_forward(const Tensor& y, const Tensor& sum, const Tensor& a, const Tensor& b,
                          Saved& saved, Memory& memory) const {
  saved.x = sum.as_matrix();
  saved.rstd = memory.saved.tensor("norm.rstd", {sum.shape.rows()}, accumulator_dtype(sum.dtype));
  ops_.add_rms_norm_forward({.sum = saved.x,
                             .y = y.as_matrix(),
                             .rstd = saved.rstd,
                             .a = a.as_matrix(),
                             .b = b.as_matrix(),
                             .weight = weight_->value,
                             .epsilon = epsilon_});
}

void RmsNorm::backward(const Tensor& dx, const Tensor& dy, const Saved& saved,
                       const Tensor& dresidual) {
  ops_.rms_norm_backward({.dx = dx.as_matrix(),
                          .dweight = weight_->gradient,
                          .dy = dy.as_matrix(),
                          .x = saved.x,
                          .rstd = saved.rstd,
                          .weight = weight_->value,
                          .dresidual = dresidual ? dresidual.as_matrix() : Tensor{}});
}

}  // namespace phalanx
