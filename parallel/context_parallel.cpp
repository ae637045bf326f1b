// The zigzag cut of a sequence.
#include "parallel/context_parallel.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"

namespace phalanx {

std::vector<PositionRange> context_positions(int64_t positions, int rank, int size) {
  check(0 <= rank && rank < size, "context rank ", rank, " is not one of ", size);
  if (size == 1) return {{0, positions}};
  check(positions % (2 * size) == 0, "a sequence of ", positions, " positions cannot be cut into ",
        2 * size, " equal pieces for context-parallel-size ", size);
  const int64_t piece = positions / (2 * size);
  const int64_t early = rank * piece;
  const int64_t late = (2 * size - 1 - rank) * piece;
  if (early + piece == late) return {{early, late + piece}};
  return {{early, early + piece}, {late, late + piece}};
}

std::vector<std::string> validate_context(int64_t positions, int64_t size, int64_t multiple) {
  if (size == 1) return {};
  const int64_t step = 2 * size * multiple;
  if (positions > 0 && positions % step == 0) return {};
  const int64_t below = positions / step * step;
  const std::string nearest =
      below > 0 ? fmt::format("{} or {}", below, below + step) : fmt::format("{}", below + step);
  return {fmt::format(
      "seq-length {} cannot be cut into 2 x context-parallel-size {} pieces of a multiple of {} "
      "positions; try seq-length {}",
      positions, size, multiple, nearest)};
}

}  // namespace phalanx
