// Putting attention together from parts over disjoint keys, through their log-sum-exp.
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"

namespace phalanx {
namespace {

/// Which element of lse [B, G, Sq, Kq*R] belongs to which head of which row of out [Sq*B*Kq, A*D].
struct HeadMap {
  HeadMap(const Shape& out, const Shape& lse)
      : sequences(lse[0]),
        groups(lse[1]),
        queries(lse[2]),
        copies(out[2]),
        per_group(lse[3] / copies),
        head_dim(out[3] / (groups * per_group)) {}
  int64_t rows() const { return queries * sequences * copies; }
  int64_t heads() const { return groups * per_group; }
  int64_t lse_index(int64_t row, int64_t head) const {
    const int64_t query = row / copies / sequences;
    const int64_t sequence = row / copies % sequences;
    const int64_t pair = sequence * groups + head / per_group;
    return ((pair * queries + query) * copies + row % copies) * per_group + head % per_group;
  }
  int64_t sequences, groups, queries, copies, per_group, head_dim;
};

/// What the old and the new sum are multiplied by.
template <class Real>
struct MergeWeights {
  Real before;
  Real added;
};

/// lse takes in part_lse.
template <class Real>
MergeWeights<Real> merge_weights(Real& lse, Real part_lse) {
  // Nothing is added; and were both -infinity, it would be subtracted from itself below.
  if (part_lse == -std::numeric_limits<Real>::infinity()) return {Real(1), Real(0)};
  const Real maximum = std::max(lse, part_lse);
  const Real old_weight = std::exp(lse - maximum);
  const Real new_weight = std::exp(part_lse - maximum);
  const Real total = old_weight + new_weight;
  lse = maximum + std::log(total);
  return {old_weight / total, new_weight / total};
}

}  // namespace

void CpuBackend::attention_merge_impl(const Tensor& out, const Tensor& lse, const Tensor& part,
                                      const Tensor& part_lse) {
  dispatch_float(part.dtype, [&]<class T>() {
    using Real = Accumulator<T>;
    const HeadMap map(out.shape, lse.shape);
    Real* sums = out.as<Real>();
    Real* sums_lse = lse.as<Real>();
    const T* added = part.as<T>();
    const Real* added_lse = part_lse.as<Real>();
    const auto rows = [=](int64_t begin, int64_t end) {
      for (int64_t i = begin * map.heads(); i < end * map.heads(); ++i) {
        const int64_t at = map.lse_index(i / map.heads(), i % map.heads());
        const MergeWeights<Real> weights = merge_weights(sums_lse[at], added_lse[at]);
        const Real before = weights.before;
        const Real more = weights.added;
        if (more == Real(0) && before == Real(1)) continue;
        Real* y = sums + i * map.head_dim;
        const T* x = added + i * map.head_dim;
#pragma omp simd
        for (int64_t d = 0; d < map.head_dim; ++d)
          y[d] = before * y[d] + more * static_cast<Real>(x[d]);
      }
    };
    parallel_ranges(num_threads_, map.rows(), row_grain(out.shape.back()), rows);
  });
}

}  // namespace phalanx
