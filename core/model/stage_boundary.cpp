// Buffers between stages.
#include "core/model/stage_boundary.h"

namespace phalanx {

Boundary make_boundary(const ModelChunk& chunk, const Shape& passed, int64_t slots, Arena& arena,
                       DType dtype) {
  const auto take = [&](const char* name, int64_t copies, int64_t count) {
    std::vector<Tensor> tensors;
    while (std::ssize(tensors) < count)
      tensors.push_back(arena.tensor(name, passed.with_dim(2, copies), dtype));
    return tensors;
  };
  Boundary boundary;
  if (!chunk.is_first()) {
    boundary.inputs = take("stage.input", chunk.input_copies(), slots + 2);
    boundary.dinputs = take("stage.dinput", chunk.input_copies(), 2);
  }
  if (!chunk.is_last()) {
    boundary.outputs = take("stage.output", chunk.output_copies(), 2);
    boundary.doutputs = take("stage.doutput", chunk.output_copies(), 2);
  }
  return boundary;
}

const Tensor& turn(const std::vector<Tensor>& tensors, int64_t micro_batch) {
  return tensors[static_cast<size_t>(micro_batch) % tensors.size()];
}

}  // namespace phalanx
