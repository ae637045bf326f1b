// Views of tensors and the text form of shapes.
#include "kernels/base/tensor.h"

#include <fmt/ranges.h>

namespace phalanx {

std::string Shape::to_string() const {
  return fmt::format("[{}]", fmt::join(dims_.begin(), dims_.begin() + rank_, ", "));
}

Tensor Tensor::view(const Shape& other) const {
  if (other.numel() != shape.numel())
    fail("cannot view ", shape.to_string(), " as ", other.to_string(),
         ": the number of elements differs");
  Tensor result = *this;
  result.shape = other;
  return result;
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
  if (shape.rank() == 0 || begin < 0 || end < begin || end > shape[0])
    fail("slice [", begin, ", ", end, ") is outside ", shape.to_string());
  const int64_t entry_bytes = shape[0] == 0 ? 0 : bytes() / shape[0];
  Tensor result = *this;
  // A measured tensor has no memory, and neither have its parts.
  if (data != nullptr) result.data = static_cast<char*>(data) + begin * entry_bytes;
  result.shape = shape.with_dim(0, end - begin);
  return result;
}

}  // namespace phalanx
