// The speed of light for utilisation figures, measured.
#pragma once

#include "kernels/backend.h"

namespace phalanx {

/// FLOP/s of the best of several square matrix products in `dtype`, in at most about half a second.
/// All ranks of a machine should call it together, so that each sees its share of the cores.
double measure_peak_flops(Backend& backend, DType dtype);

}  // namespace phalanx
