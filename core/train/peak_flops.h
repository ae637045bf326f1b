// The speed of light for utilisation figures, measured.
#pragma once

#include <limits>

#include "kernels/backend.h"

namespace phalanx {

/// FLOP/s of the best of several square matrix products in `dtype`, in at most about half a second.
/// All ranks of a machine should call it together, so that each sees its share of the cores. The
/// operands are made smaller where they would take more than `most_bytes`.
double measure_peak_flops(Backend& backend, DType dtype,
                          int64_t most_bytes = std::numeric_limits<int64_t>::max());

}  // namespace phalanx
