// Boundary: what passes between a chunk of a pipeline stage and its neighbours.
#pragma once

#include <vector>

#include "core/model/model_chunk.h"

namespace phalanx {

/// Tensors [S/cp(/tp), B, copies, H] each; none at the model's ends. Inputs live until the
/// backward, and two more may be receiving while all slots are in use; the others alternate.
struct Boundary {
  std::vector<Tensor> inputs, outputs, doutputs, dinputs;
};

/// Of `chunk` with `slots` micro-batches in flight, out of `arena`. `passed` is the shape of all of
/// them but for the copies, dim 2.
Boundary make_boundary(const ModelChunk& chunk, const Shape& passed, int64_t slots, Arena& arena,
                       DType dtype);

/// The one of `tensors` whose turn it is.
const Tensor& turn(const std::vector<Tensor>& tensors, int64_t micro_batch);

}  // namespace phalanx
