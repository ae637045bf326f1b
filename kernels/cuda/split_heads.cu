// q, k or v rows to heads and back: norm, then RoPE (half-split, Su et al. 2021), then transpose,
// in one pass. Some lanes of a warp share a head: a lane holds packs at i and at D/2 + i, the two
// elements that RoPE rotates.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/head_pair.h"
#include "kernels/cuda/row_sums.h"
#include "kernels/head_rows.h"

namespace phalanx {
namespace {

constexpr int64_t kMaxHeadDim = 1024;  // of the CPU too
constexpr int kThreads = 256;
/// Threads of all parts of the backward: an estimate of what a GPU holds at its registers.
constexpr int64_t kPartThreads = 65536;

/// What the rows need beside their elements.
template <class T>
struct Heads {
  using Acc = Accumulator<T>;
  HeadRows map;
  HeadNorm norm;
  CopyPosition copy_position;
  int lane_bits = 0;      // 2^lane_bits lanes share a head
  int64_t dim, half;      // D and the first half of it, rounded up (without rotation D may be odd)
  int64_t width, column;  // of rows of x: elements, and where these heads begin
  const float* table;     // null: no rotation
  const int32_t* position_ids;
  const T* weight;      // null: no norm
  const Acc* row_sums;  // full_width only
  int64_t first_position, first_copy, total_copies;
  Acc norm_width, epsilon;

  Heads(const Shape& shape, const SplitHeads& options, int64_t row_width)
      : map(shape, options),
        norm(options.norm),
        copy_position(options.copy_position),
        dim(map.head_dim),
        half((dim + 1) / 2),
        width(row_width),
        column(options.column),
        table(options.rope_table ? options.rope_table.as<float>() : nullptr),
        position_ids(options.position_ids ? options.position_ids.as<int32_t>() : nullptr),
        weight(norm == HeadNorm::none ? nullptr : options.weight.as<T>()),
        row_sums(norm == HeadNorm::full_width ? options.row_sums.as<Acc>() : nullptr),
        first_position(options.first_position),
        first_copy(options.first_copy),
        total_copies(options.total_copies),
        norm_width(static_cast<Acc>(norm == HeadNorm::full_width ? options.norm_width : dim)),
        epsilon(static_cast<Acc>(options.epsilon)) {
    check(dim <= kMaxHeadDim, "split_heads: head dim ", dim, " is above ", kMaxHeadDim);
  }

  /// cos then sin of this row's position; null without rotation.
  __device__ const float* angles(int64_t row) const {
    if (table == nullptr) return nullptr;
    const int64_t token = row / map.copies;  // s * B + b
    int64_t position =
        position_ids != nullptr ? position_ids[token] : first_position + token / map.sequences;
    if (copy_position == CopyPosition::flattened)
      position = position * total_copies + first_copy + row % map.copies;
    return table + position * dim;
  }

  __device__ const T* head_weight(int64_t head) const {
    return norm == HeadNorm::full_width ? weight + head * dim : weight;
  }
  __device__ int64_t in_rows(int64_t row, int64_t head) const {
    return row * width + column + head * dim;
  }
  __device__ Acc rstd(Acc sum_squares) const {
    return Acc{1} / sqrt(sum_squares / norm_width + epsilon);
  }
};

/// A thread's place: which group of lanes of the grid, and which lane of the group.
struct GroupLane {
  int64_t group;
  int lane, lanes;

  __device__ explicit GroupLane(int lane_bits)
      : group((int64_t{blockIdx.x} * blockDim.x + threadIdx.x) >> lane_bits),
        lane(static_cast<int>(threadIdx.x) & ((1 << lane_bits) - 1)),
        lanes(1 << lane_bits) {}

  /// The sum over the lanes of the group, on all of them. The whole warp takes part.
  template <class Acc>
  __device__ Acc sum(Acc value) const {
    for (int offset = lanes / 2; offset > 0; offset /= 2)
      value += __shfl_xor_sync(kAllLanes, value, offset);
    return value;
  }
};

/// A group of lanes per row and head; a lane holds `steps` pairs.
template <class T, int n, int steps>
__global__ void __launch_bounds__(kThreads) split(Heads<T> heads, T* y, const T* x) {
  using Acc = Accumulator<T>;
  const GroupLane place(heads.lane_bits);
  const int64_t num_heads = heads.map.heads();
  const bool there = place.group < heads.map.num_rows() * num_heads;
  const int64_t row = there ? place.group / num_heads : 0;
  const int64_t head = there ? place.group % num_heads : 0;
  const T* source = x + heads.in_rows(row, head);
  HeadPair<T, n> pairs[steps];
  Acc squares{};
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    const int64_t i = (place.lane + step * place.lanes) * n;
    if (i >= heads.half) continue;
    pairs[step].load_from(source, i, heads.half, heads.dim);
    squares += pairs[step].sum_squares();
  }
  Acc rstd{};
  if (heads.norm == HeadNorm::per_head) rstd = heads.rstd(place.sum(squares));
  if (heads.norm == HeadNorm::full_width) rstd = heads.rstd(heads.row_sums[row]);
  if (!there) return;
  const float* angles = heads.angles(row);
  T* target = y + heads.map.offset(row, head);
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    const int64_t i = (place.lane + step * place.lanes) * n;
    if (i >= heads.half) continue;
    if (heads.weight != nullptr) {
      HeadPair<T, n> weight;
      weight.load_from(heads.head_weight(head), i, heads.half, heads.dim);
      pairs[step].normalise(weight, rstd);
    }
    pairs[step].rotate(angles, i, heads.half, Acc{1});
    pairs[step].store_to(target, i, heads.half, heads.dim);
  }
}

/// dots[row] = rstd * sum over heads of dy' * weight * x, dy' being dy rotated back.
template <class T, int n>
__global__ void __launch_bounds__(512)
    sum_row_dots(Heads<T> heads, Accumulator<T>* dots, const T* dy, const T* x) {
  using Acc = Accumulator<T>;
  __shared__ Acc scratch[kWarp];
  const int64_t row = own_row();
  if (row >= heads.map.num_rows()) return;
  const float* angles = heads.angles(row);
  const int head_packs = static_cast<int>((heads.half + n - 1) / n);
  const int packs = static_cast<int>(heads.map.heads()) * head_packs;
  Acc sum{};
  for (int pack = static_cast<int>(threadIdx.x); pack < packs;
       pack += static_cast<int>(blockDim.x)) {
    const int64_t head = pack / head_packs;
    const int64_t i = pack % head_packs * n;
    HeadPair<T, n> gradient;
    HeadPair<T, n> values;
    HeadPair<T, n> weight;
    gradient.load_from(dy + heads.map.offset(row, head), i, heads.half, heads.dim);
    values.load_from(x + heads.in_rows(row, head), i, heads.half, heads.dim);
    weight.load_from(heads.head_weight(head), i, heads.half, heads.dim);
    gradient.rotate(angles, i, heads.half, Acc{-1});
    sum += gradient.dot(weight, values);
  }
  sum = row_sum(sum, scratch);
  if (threadIdx.x == 0) dots[row] = sum * heads.rstd(heads.row_sums[row]);
}

template <class T>
struct HeadGradients {
  using Acc = Accumulator<T>;
  T* dx;
  const T* dy;
  const T* x;           // null without norm
  const Acc* row_dots;  // full_width only
  Acc* partial;         // shares of dweight: [parts, heads * D], or per_head [blocks, D]
  int64_t parts;
};

/// The norm's backward of the pairs that a lane holds: gradients become those of x, and shares of
/// dweight are added up. dx = rstd * (dy' * weight - x * rstd * dot / width).
template <class T, int n>
__device__ void norm_backward(HeadPair<T, n>& gradient, HeadPair<T, n>& share,
                              const HeadPair<T, n>& weight, const HeadPair<T, n>& x,
                              Accumulator<T> rstd, Accumulator<T> dot_mean) {
  const auto element = [=](Accumulator<T>& g, Accumulator<T>& sum, Accumulator<T> w,
                           Accumulator<T> value) {
    const Accumulator<T> normed = value * rstd;
    sum += g * normed;
    g = rstd * (g * w - normed * dot_mean);
  };
#pragma unroll
  for (int j = 0; j < n; ++j) {
    element(gradient.first[j], share.first[j], weight.first[j], x.first[j]);
    element(gradient.second[j], share.second[j], weight.second[j], x.second[j]);
  }
}

/// A head of a row; `there` is false for lanes that have none left and only take part in sums.
struct HeadPlace {
  int64_t row, head;
  bool there;
};

/// One row's gradients for a lane of one head. The whole warp calls.
template <class T, int n, int steps>
__device__ void backward_row(const Heads<T>& heads, const HeadGradients<T>& gradients,
                             const GroupLane& place, const HeadPlace& own,
                             HeadPair<T, n> (&shares)[steps]) {
  using Acc = Accumulator<T>;
  const int64_t at = heads.in_rows(own.row, own.head);
  const bool normed = heads.weight != nullptr;
  const float* angles = heads.angles(own.row);
  const T* dy = gradients.dy + heads.map.offset(own.row, own.head);
  HeadPair<T, n> pairs[steps];
  HeadPair<T, n> x[steps];
  Acc squares{};
  Acc dot{};
  const auto load_weight = [&](HeadPair<T, n>& weight, int64_t i) {
    weight.load_from(heads.head_weight(own.head), i, heads.half, heads.dim);
  };
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    const int64_t i = (place.lane + step * place.lanes) * n;
    if (i >= heads.half) continue;
    pairs[step].load_from(dy, i, heads.half, heads.dim);
    if (normed) x[step].load_from(gradients.x + at, i, heads.half, heads.dim);
    pairs[step].rotate(angles, i, heads.half, Acc{-1});
    if (heads.norm != HeadNorm::per_head) continue;
    HeadPair<T, n> weight;
    load_weight(weight, i);
    squares += x[step].sum_squares();
    dot += pairs[step].dot(weight, x[step]);
  }
  Acc rstd{};
  if (heads.norm == HeadNorm::per_head) {
    rstd = heads.rstd(place.sum(squares));
    dot = place.sum(dot) * rstd;
  } else if (normed) {
    rstd = heads.rstd(heads.row_sums[own.row]);
    dot = gradients.row_dots[own.row];
  }
  if (!own.there) return;
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    const int64_t i = (place.lane + step * place.lanes) * n;
    if (i >= heads.half) continue;
    if (normed) {
      HeadPair<T, n> weight;
      load_weight(weight, i);
      norm_backward(pairs[step], shares[step], weight, x[step], rstd, dot / heads.norm_width);
    }
    pairs[step].store_to(gradients.dx + at, i, heads.half, heads.dim);
  }
}

/// Writes a lane's elements of one head's shares.
template <class T, int n, int steps>
__device__ void write_shares(const Heads<T>& heads, const GroupLane& place, Accumulator<T>* target,
                             const HeadPair<T, n> (&shares)[steps]) {
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    const int64_t i = (place.lane + step * place.lanes) * n;
    if (i >= heads.half) continue;
#pragma unroll
    for (int j = 0; j < n; ++j) {
      target[i + j] = shares[step].first[j];
      if (heads.half + i + j < heads.dim) target[heads.half + i + j] = shares[step].second[j];
    }
  }
}

/// A group of lanes per part and head: rows part, part + parts, ... Each lane keeps its elements'
/// shares of dweight in registers. Where all heads have one weight, a block adds up its groups.
template <class T, int n, int steps>
__global__ void __launch_bounds__(kThreads, 1)
    split_backward(Heads<T> heads, HeadGradients<T> gradients) {
  using Acc = Accumulator<T>;
  const GroupLane place(heads.lane_bits);
  const int64_t num_heads = heads.map.heads();
  const int64_t num_rows = heads.map.num_rows();
  const int64_t head = place.group % num_heads;
  const int64_t part = place.group / num_heads;
  HeadPair<T, n> shares[steps] = {};
  // As many turns for all parts, because lanes of a warp may belong to several.
  for (int64_t first = 0; first < num_rows; first += gradients.parts) {
    const int64_t row = first + part;
    const bool there = part < gradients.parts && row < num_rows;
    backward_row(heads, gradients, place, {there ? row : 0, head, there}, shares);
  }
  if (heads.norm == HeadNorm::full_width && part < gradients.parts)
    write_shares(heads, place, gradients.partial + place.group * heads.dim, shares);
  if (heads.norm != HeadNorm::per_head) return;
  Acc* sums = dynamic_shared<Acc>();  // [groups of the block, D]
  write_shares(heads, place, sums + (threadIdx.x >> heads.lane_bits) * heads.dim, shares);
  __syncthreads();
  const int64_t groups = blockDim.x >> heads.lane_bits;
  for (int64_t i = threadIdx.x; i < heads.dim; i += blockDim.x) {
    Acc sum{};
    for (int64_t group = 0; group < groups; ++group) sum += sums[group * heads.dim + i];
    gradients.partial[blockIdx.x * heads.dim + i] = sum;
  }
}

/// Whether heads, rows, weight and angles can be read in packs.
template <class T>
bool head_packs(const Heads<T>& heads, std::initializer_list<const void*> pointers) {
  constexpr int n = kPack<T>;
  return heads.dim % (2 * n) == 0 && heads.width % n == 0 && heads.column % n == 0 &&
         starts_packs({heads.weight, heads.table}) && starts_packs(pointers);
}

/// Sets heads.lane_bits and calls body.operator()<n, steps>(): lanes enough for a head, or, where
/// 32 are not, several pairs per lane.
template <class T, class Body>
void dispatch_lanes(Heads<T>& heads, bool in_packs, const Body& body) {
  constexpr int n = kPack<T>;
  if (in_packs && heads.half > 4 * kWarp * n) in_packs = false;  // f64 above D = 512
  const int64_t packs = in_packs ? heads.half / n : heads.half;
  while (heads.lane_bits < 5 && (int64_t{1} << heads.lane_bits) < packs) ++heads.lane_bits;
  if (in_packs && packs <= kWarp) return body.template operator()<n, 1>();
  if (in_packs) return body.template operator()<n, 4>();
  if (packs <= 4 * kWarp) return body.template operator()<1, 4>();
  body.template operator()<1, 16>();
}

/// sums[row] = sum of squares of `width` elements from row * stride on.
template <class T, int n>
__global__ void __launch_bounds__(1024)
    sum_row_squares(Accumulator<T>* sums, const T* x, int64_t rows, int64_t stride, int64_t width) {
  using Acc = Accumulator<T>;
  __shared__ Acc scratch[kWarp];
  const int64_t row = own_row();
  if (row >= rows) return;
  Acc sum{};
  for (int64_t i = int64_t{threadIdx.x} * n; i < width; i += int64_t{blockDim.x} * n) {
    Acc values[n];
    load<n>(values, x + row * stride + i);
#pragma unroll
    for (int j = 0; j < n; ++j) sum += values[j] * values[j];
  }
  sum = row_sum(sum, scratch);
  if (threadIdx.x == 0) sums[row] = sum;
}

}  // namespace

void CudaBackend::row_sum_squares_impl(const Tensor& sums, const Tensor& x, int64_t column,
                                       int64_t width) {
  dispatch_float(x.dtype, [&]<class T>() {
    constexpr int pack = kPack<T>;
    const T* first = x.as<T>() + column;
    const int64_t stride = x.shape.back();
    const bool in_packs = stride % pack == 0 && width % pack == 0 && starts_packs({first});
    dispatch_packs<T>(in_packs, [&]<int n>() {
      const LaunchShape shape = row_shape(x.shape.rows(), row_threads((width + n - 1) / n));
      launch(sum_row_squares<T, n>, shape, stream_, sums.as<Accumulator<T>>(), first,
             x.shape.rows(), stride, width);
    });
  });
}

void CudaBackend::split_heads_forward_impl(const Tensor& y, const Tensor& x,
                                           const SplitHeads& options) {
  dispatch_float(x.dtype, [&]<class T>() {
    Heads<T> heads(y.shape, options, x.shape.back());
    const int64_t count = heads.map.num_rows() * heads.map.heads();
    dispatch_lanes(heads, head_packs(heads, {y.data, x.data}), [&]<int n, int steps>() {
      launch(split<T, n, steps>, one_thread_each(count << heads.lane_bits, kThreads), stream_,
             heads, y.as<T>(), x.as<T>());
    });
  });
}

void CudaBackend::split_heads_row_dots_impl(const Tensor& dots, const Tensor& dy, const Tensor& x,
                                            const SplitHeads& options) {
  dispatch_float(x.dtype, [&]<class T>() {
    const Heads<T> heads(dy.shape, options, x.shape.back());
    dispatch_packs<T>(head_packs(heads, {dy.data, x.data}), [&]<int n>() {
      const int64_t packs = heads.map.heads() * ((heads.half + n - 1) / n);
      launch(sum_row_dots<T, n>, row_shape(heads.map.num_rows(), row_threads(packs, 512)), stream_,
             heads, dots.as<Accumulator<T>>(), dy.as<T>(), x.as<T>());
    });
  });
}

void CudaBackend::split_heads_backward_impl(const SplitHeadsBackward& arguments,
                                            const SplitHeads& options) {
  dispatch_float(arguments.dx.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    Heads<T> heads(arguments.dy.shape, options, arguments.dx.shape.back());
    const bool normed = options.norm != HeadNorm::none;
    const bool per_head = options.norm == HeadNorm::per_head;
    HeadGradients<T> gradients{
        .dx = arguments.dx.as<T>(),
        .dy = arguments.dy.as<T>(),
        .x = normed ? arguments.x.as<T>() : nullptr,
        .row_dots = per_head || !normed ? nullptr : arguments.row_dots.as<Acc>(),
        .partial = nullptr,
        .parts = 1};
    const int64_t num_heads = heads.map.heads();
    const int64_t rows = heads.map.num_rows();
    if (rows * num_heads * heads.dim == 0) return;
    const bool in_packs = head_packs(heads, {gradients.dx, gradients.dy, gradients.x});
    dispatch_lanes(heads, in_packs, [&]<int n, int steps>() {
      const int64_t part_threads = num_heads << heads.lane_bits;
      const int64_t part_bytes = num_heads * heads.dim * static_cast<int64_t>(sizeof(Acc));
      gradients.parts = number_of_parts(
          rows, std::min(kPartThreads / part_threads, workspace_bytes(Device::cuda) / part_bytes));
      LaunchShape shape = one_thread_each(gradients.parts * part_threads, kThreads);
      const int64_t groups = kThreads >> heads.lane_bits;
      if (per_head) shape.shared_bytes = groups * heads.dim * static_cast<int64_t>(sizeof(Acc));
      const int64_t partial_rows = per_head ? int64_t{shape.grid.x} : gradients.parts;
      const int64_t partial_width = per_head ? heads.dim : num_heads * heads.dim;
      if (normed)
        gradients.partial = static_cast<Acc*>(
            workspace(partial_rows * partial_width * static_cast<int64_t>(sizeof(Acc))));
      launch(split_backward<T, n, steps>, shape, stream_, heads, gradients);
      if (normed)
        launch_add_parts(arguments.dweight.as<Acc>(), gradients.partial, partial_rows,
                         partial_width, stream_);
    });
  });
}

}  // namespace phalanx
