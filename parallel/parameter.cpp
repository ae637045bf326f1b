// ParameterStore: registration, the two flat blocks, and starting values.
#include "parallel/parameter.h"

#include <algorithm>

namespace phalanx {
namespace {

/// The tensor dim that some axis cuts, or kReplicate. More than one cut axis per parameter has no
/// single (rank, size), so it is refused here.
int8_t cut_dim(const ParameterSpec& spec) {
  int8_t result = Placement::kReplicate;
  for (const int8_t dim : spec.placement.shard_dim) {
    if (dim == Placement::kReplicate) continue;
    check(result == Placement::kReplicate, "parameter ", spec.name,
          " is cut by more than one mesh axis; one axis at most can cut it");
    result = dim;
  }
  return result;
}

/// `count` elements of a flat block from `begin` on, as `shape`. A block without memory (null
/// backend) stays without.
Tensor part_of(const Tensor& block, int64_t begin, const Shape& shape) {
  Tensor part = block;
  if (block.data != nullptr)
    part.data = static_cast<char*>(block.data) + begin * dtype_bytes(block.dtype);
  part.shape = shape;
  return part;
}

/// Shape of `count` adjacent parameters seen as one matrix.
Shape fused_shape(const ParameterStore& store, const Parameter& first, int64_t count) {
  check(count >= 1 && first.index + count <= store.size(), "cannot fuse ", count,
        " parameters from ", first.spec.name, " on: the store holds ", store.size());
  check(first.shape.rank() == 2, "cannot fuse ", first.spec.name, ": it is not a matrix");
  int64_t rows = 0;
  for (int64_t i = first.index; i < first.index + count; ++i) {
    const Parameter& part = store[i];
    check(part.shape.rank() == 2 && part.shape[1] == first.shape[1], "cannot fuse ", part.spec.name,
          " with ", first.spec.name, ": both must be matrices with ", first.shape.back(),
          " columns");
    rows += part.shape[0];
  }
  return {rows, first.shape[1]};
}

}  // namespace

Parameter& ParameterStore::add(const ParameterSpec& spec, int rank, int size) {
  check(!values_, "parameter ", spec.name, " comes after allocate; register all layers first");
  check(names_.insert(spec.name).second, "parameter ", spec.name,
        " is registered twice; every parameter needs its own name");
  const int dims = spec.global_shape.rank();
  check(dims == 1 || dims == 2, "parameter ", spec.name, " has ", dims, " dims; use 1 or 2");
  const int8_t dim = cut_dim(spec);
  check(0 <= rank && rank < size, "parameter ", spec.name, ": rank ", rank, " is not one of ",
        size);
  check(size == 1 || dim != Placement::kReplicate, "parameter ", spec.name,
        " is replicated, so it has one piece, not ", size);

  auto parameter = std::make_unique<Parameter>();
  parameter->spec = spec;
  parameter->shape = spec.global_shape;
  if (dim != Placement::kReplicate) {
    check(dim < dims, "parameter ", spec.name, " is cut at dim ", dim, " of ", dims);
    const int64_t whole = spec.global_shape[dim];
    check_usage(whole % size == 0, "dim ", dim, " of parameter ", spec.name, " (", whole,
                ") is not divisible by its ", size,
                " parallel ranks; use a parallel size that divides it");
    parameter->shape = spec.global_shape.with_dim(dim, whole / size);
    parameter->offset[static_cast<size_t>(dim)] = rank * (whole / size);
  }
  parameter->index = this->size();
  parameter->flat_offset = numel_;
  numel_ += parameter->numel();
  parameters_.push_back(std::move(parameter));
  return *parameters_.back();
}

void ParameterStore::allocate(Backend& backend, DType compute_dtype,
                              const std::vector<ParameterRange>& units) {
  check(!values_, "the parameters have been allocated before; allocate once");
  check(numel_ > 0, "no parameter is registered; register the layers before allocate");
  const DType gradient_dtype = accumulator_dtype(compute_dtype);
  int64_t resident = numel_;
  for (const ParameterRange& unit : units)
    for (int64_t i = unit.first; i < unit.last; ++i) resident -= (*this)[i].numel();
  value_block_ = backend.allocate(resident * dtype_bytes(compute_dtype));
  gradient_block_ = backend.allocate(resident * dtype_bytes(gradient_dtype));
  values_ = {value_block_.get(), {resident}, compute_dtype, backend.device()};
  gradients_ = {gradient_block_.get(), {resident}, gradient_dtype, backend.device()};
  int64_t at = 0;
  int64_t next = 0;
  const auto place_until = [&](int64_t last) {
    if (next == last) return;
    const int64_t begin = (*this)[next].flat_offset;
    const int64_t end = last < size() ? (*this)[last].flat_offset : numel_;
    place_values({next, last}, values_.slice(at, at + end - begin));
    place_gradients({next, last}, gradients_.slice(at, at + end - begin));
    at += end - begin;
  };
  for (const ParameterRange& unit : units) {
    place_until(unit.first);
    place_values(unit, {});
    place_gradients(unit, {});
    next = unit.last;
  }
  place_until(size());
}

void ParameterStore::place(const ParameterRange& unit, Tensor Parameter::*part, const Tensor& all,
                           const Tensor& block) {
  const int64_t begin = (*this)[unit.first].flat_offset;
  for (int64_t i = unit.first; i < unit.last; ++i) {
    Parameter& parameter = (*this)[i];
    parameter.*part = block ? part_of(block, parameter.flat_offset - begin, parameter.shape)
                            : Tensor{nullptr, parameter.shape, all.dtype, all.device};
  }
}

void ParameterStore::place_values(const ParameterRange& unit, const Tensor& block) {
  place(unit, &Parameter::value, values_, block);
}

void ParameterStore::place_gradients(const ParameterRange& unit, const Tensor& block) {
  place(unit, &Parameter::gradient, gradients_, block);
}

const Parameter& ParameterStore::holder_of(int64_t begin, int64_t end) const {
  check(0 <= begin && begin <= end && end <= numel_, "elements [", begin, ", ", end,
        ") of a store of ", numel_);
  const auto after = std::upper_bound(
      parameters_.begin(), parameters_.end(), begin,
      [](int64_t wanted, const auto& parameter) { return wanted < parameter->flat_offset; });
  return **std::prev(after);
}

// Units and the rest lie apart, so a range must not cross from one to the other.
void ParameterStore::check_adjacent(const Parameter& first, int64_t end) const {
  const Parameter& last = holder_of(std::max(first.flat_offset, end - 1), end);
  const int64_t bytes = (last.flat_offset - first.flat_offset) * dtype_bytes(first.value.dtype);
  check(first.value.data == nullptr || last.value.data == nullptr
            ? first.value.data == last.value.data
            : static_cast<const char*>(first.value.data) + bytes == last.value.data,
        "parameters ", first.spec.name, " to ", last.spec.name, " are not adjacent in memory");
}

Tensor ParameterStore::values(int64_t begin, int64_t end) const {
  const Parameter& first = holder_of(begin, end);
  check_adjacent(first, end);
  return part_of(first.value, begin - first.flat_offset, {end - begin});
}

Tensor ParameterStore::gradients(int64_t begin, int64_t end) const {
  const Parameter& first = holder_of(begin, end);
  check_adjacent(first, end);
  return part_of(first.gradient, begin - first.flat_offset, {end - begin});
}

void ParameterStore::initialise(Backend& backend, uint64_t seed) {
  check(static_cast<bool>(values_), "allocate the parameters before drawing them");
  for (const auto& parameter : parameters_)
    initialise_rows(backend, *parameter, 0, parameter->value.view(parameter->matrix_shape()), seed);
}

void initialise_rows(Backend& backend, const Parameter& parameter, int64_t row_begin,
                     const Tensor& rows, uint64_t seed) {
  const Initialiser& initialiser = parameter.spec.initialiser;
  if (initialiser.stddev == 0.0) {
    backend.fill(rows, initialiser.constant);
    return;
  }
  const Shape& whole = parameter.spec.global_shape;
  backend.truncated_normal(rows, {.random = Philox(seed, parameter.spec.name),
                                  .stddev = initialiser.stddev,
                                  .global_columns = whole.rank() == 2 ? whole[1] : 1,
                                  .row_begin = parameter.offset[0] + row_begin,
                                  .column_begin = parameter.offset[1]});
}

Tensor ParameterStore::fused_value(const Parameter& first, int64_t count) const {
  return part_of(first.value, 0, fused_shape(*this, first, count));
}

Tensor ParameterStore::fused_gradient(const Parameter& first, int64_t count) const {
  return part_of(first.gradient, 0, fused_shape(*this, first, count));
}

}  // namespace phalanx
