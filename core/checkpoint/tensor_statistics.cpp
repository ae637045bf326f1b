// Sums over tensors, piece by piece.
#include "core/checkpoint/tensor_statistics.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <span>

#include "core/checkpoint/parallel_tasks.h"

namespace phalanx {
namespace {

struct Sums {
  double sum = 0;
  double squares = 0;
  double max_abs = 0;
  int64_t num_nan = 0;
  int64_t num_infinite = 0;

  template <class T>
  void add(std::span<const T> values) {
    double sum_here = 0;  // a piece's own sum, so that rounding does not grow with the tensor
    double squares_here = 0;
    for (const T element : values) {
      const auto value = static_cast<double>(element);
      if (!std::isfinite(value)) {
        ++(std::isnan(value) ? num_nan : num_infinite);
        continue;
      }
      sum_here += value;
      squares_here += value * value;
      max_abs = std::max(max_abs, std::abs(value));
    }
    sum += sum_here;
    squares += squares_here;
  }
};

template <class T>
TensorStatistics statistics_of(CheckpointReader& reader, const SavedTensor& tensor, int part) {
  Sums sums;
  std::vector<T> buffer;
  const DType dtype = reader.manifest().dtype;
  for (const BlockRange& piece : cut_range(whole_range(tensor), dtype, kPieceBytes)) {
    buffer.resize(static_cast<size_t>(piece.size[0] * piece.size[1]));
    reader.read(tensor, part, piece, buffer.data());
    sums.add(std::span<const T>(buffer));
  }
  const auto finite = static_cast<double>(
      std::max<int64_t>(1, tensor.shape.numel() - sums.num_nan - sums.num_infinite));
  return {.name = kPartPrefix[static_cast<size_t>(part)] + tensor.name,
          .shape = tensor.shape,
          .mean = sums.sum / finite,
          .rms = std::sqrt(sums.squares / finite),
          .max_abs = sums.max_abs,
          .num_nan = sums.num_nan,
          .num_infinite = sums.num_infinite};
}

}  // namespace

std::vector<TensorStatistics> tensor_statistics(CheckpointReader& reader, int threads,
                                                const ByteProgress& progress) {
  const Manifest& manifest = reader.manifest();
  std::vector<TensorStatistics> result(manifest.tensors.size() * kNumParts);
  std::mutex mutex;
  int64_t done = 0;
  for_each_task(std::ssize(result), threads, [&](int64_t task) {
    const SavedTensor& tensor = manifest.tensors[static_cast<size_t>(task / kNumParts)];
    const int part = static_cast<int>(task % kNumParts);
    result[static_cast<size_t>(task)] = manifest.dtype == DType::f64
                                            ? statistics_of<double>(reader, tensor, part)
                                            : statistics_of<float>(reader, tensor, part);
    const std::scoped_lock lock(mutex);
    done += tensor.shape.numel() * dtype_bytes(manifest.dtype);
    if (progress) progress(done, manifest.data_bytes());
  });
  reader.check_what_was_read();
  return result;
}

}  // namespace phalanx
