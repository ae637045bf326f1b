// Comparing two checkpoints piece by piece.
#include "core/checkpoint/difference.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <limits>
#include <mutex>
#include <optional>
#include <type_traits>

#include "core/checkpoint/parallel_tasks.h"

namespace phalanx {
namespace {

struct Sums {
  int64_t differing = 0;
  double max_abs = 0;
  double squares = 0;  // of a - b
  double first_squares = 0;

  template <class A, class B>
  void add(const std::vector<A>& first, const std::vector<B>& second) {
    for (size_t i = 0; i < first.size(); ++i) {
      const auto a = static_cast<double>(first[i]);
      const auto b = static_cast<double>(second[i]);
      if (std::isfinite(a)) first_squares += a * a;
      if (equal(first[i], second[i])) continue;
      ++differing;
      const double difference = std::abs(a - b);
      squares += difference * difference;
      if (!(difference <= max_abs)) max_abs = std::isnan(max_abs) ? max_abs : difference;
    }
  }
  /// By bits, so that -0 is not 0 and a NaN is equal to itself.
  template <class T>
  static bool equal(T a, T b) {
    using Bits = std::conditional_t<sizeof(T) == sizeof(uint32_t), uint32_t, uint64_t>;
    return std::bit_cast<Bits>(a) == std::bit_cast<Bits>(b);
  }
  static bool equal(float a, double b) { return static_cast<double>(a) == b; }
  static bool equal(double a, float b) { return a == static_cast<double>(b); }
};

double relative_rms(const Sums& sums) {
  if (sums.squares == 0) return 0;
  if (sums.first_squares == 0) return std::numeric_limits<double>::infinity();
  return std::sqrt(sums.squares / sums.first_squares);
}

class Comparison {
 public:
  Comparison(CheckpointReader& first, CheckpointReader& second) : first_(first), second_(second) {}

  CheckpointDifference run(int threads, const ByteProgress& progress) {
    compare_scalars();
    match_tensors();
    std::mutex mutex;
    int64_t done = 0;
    std::vector<TensorDifference> found(tasks_.size());
    for_each_task(std::ssize(tasks_), threads, [&](int64_t i) {
      const Task& task = tasks_[static_cast<size_t>(i)];
      found[static_cast<size_t>(i)] = compare(task);
      const std::scoped_lock lock(mutex);
      done += bytes_of(task);
      if (progress) progress(done, total_);
    });
    first_.check_what_was_read();
    second_.check_what_was_read();
    for (TensorDifference& difference : found)
      if (difference.num_differing > 0)
        result_.tensors.push_back(std::move(difference));
      else
        ++result_.num_equal;
    return std::move(result_);
  }

 private:
  struct Task {
    const SavedTensor* tensor;  // of both
    int part;
  };

  template <class T>
  void compare_scalar(const char* name, const T& a, const T& b) {
    if (a != b) result_.scalars.push_back(fmt::format("{}: {} | {}", name, a, b));
  }
  void compare_scalars() {
    const Manifest& a = first_.manifest();
    const Manifest& b = second_.manifest();
    compare_scalar("step", a.counters.step, b.counters.step);
    compare_scalar("consumed samples", a.counters.consumed_samples, b.counters.consumed_samples);
    compare_scalar("consumed tokens", a.counters.consumed_tokens, b.counters.consumed_tokens);
    compare_scalar("skipped steps", a.counters.skipped_steps, b.counters.skipped_steps);
    compare_scalar("skipped in a row", a.counters.skipped_in_row, b.counters.skipped_in_row);
    compare_scalar("optimizer updates", a.num_updates, b.num_updates);
    compare_scalar("tokenizer hash", a.tokenizer_hash, b.tokenizer_hash);
    compare_scalar("dtype", std::string(dtype_name(a.dtype)), std::string(dtype_name(b.dtype)));
  }

  void match_tensors() {
    for (const SavedTensor& tensor : second_.manifest().tensors)
      if (first_.manifest().find(tensor.name) == nullptr)
        result_.only_second.push_back(tensor.name);
    for (const SavedTensor& tensor : first_.manifest().tensors) {
      const SavedTensor* other = second_.manifest().find(tensor.name);
      if (other == nullptr)
        result_.only_first.push_back(tensor.name);
      else if (!(other->shape == tensor.shape))
        result_.shapes.push_back(fmt::format("{}: {} | {}", tensor.name, tensor.shape.to_string(),
                                             other->shape.to_string()));
      else
        plan(tensor);
    }
  }

  void plan(const SavedTensor& tensor) {
    const bool same_dtype = first_.manifest().dtype == second_.manifest().dtype;
    for (int part = 0; part < kNumParts; ++part) {
      if (same_dtype && first_.digest(tensor, part) == second_.digest(tensor, part)) {
        ++result_.num_equal;
        ++result_.num_equal_by_checksum;
      } else {
        tasks_.push_back({&tensor, part});
        total_ += bytes_of(tasks_.back());
      }
    }
  }

  int64_t bytes_of(const Task& task) const {
    return task.tensor->shape.numel() *
           (dtype_bytes(first_.manifest().dtype) + dtype_bytes(second_.manifest().dtype));
  }

  TensorDifference compare(const Task& task) {
    const bool wide = first_.manifest().dtype == DType::f64;
    if (second_.manifest().dtype == DType::f64)
      return wide ? compare_as<double, double>(task) : compare_as<float, double>(task);
    return wide ? compare_as<double, float>(task) : compare_as<float, float>(task);
  }

  template <class A, class B>
  TensorDifference compare_as(const Task& task) {
    Sums sums;
    std::vector<A> a;
    std::vector<B> b;
    for (const BlockRange& piece : cut_range(whole_range(*task.tensor), DType::f64, kPieceBytes)) {
      a.resize(static_cast<size_t>(piece.size[0] * piece.size[1]));
      b.resize(a.size());
      first_.read(*task.tensor, task.part, piece, a.data());
      second_.read(*task.tensor, task.part, piece, b.data());
      sums.add(a, b);
    }
    return {.name = kPartPrefix[static_cast<size_t>(task.part)] + task.tensor->name,
            .num_elements = task.tensor->shape.numel(),
            .num_differing = sums.differing,
            .max_abs = sums.max_abs,
            .relative_rms = relative_rms(sums)};
  }

  CheckpointReader& first_;
  CheckpointReader& second_;
  CheckpointDifference result_;
  std::vector<Task> tasks_;
  int64_t total_ = 0;
};

}  // namespace

CheckpointDifference compare_checkpoints(CheckpointReader& first, CheckpointReader& second,
                                         int threads, const ByteProgress& progress) {
  return Comparison(first, second).run(threads, progress);
}

}  // namespace phalanx
