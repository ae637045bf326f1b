// Operands of an attention case, the kernels run on them, and how far results are from the
// reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/make_backend.h"
#include "tests/kernels/attention_reference.h"
#include "tests/test_device.h"

namespace phalanx::testing {

/// Values of T and the same values in f64.
template <class T>
struct Operand {
  std::vector<T> data;
  explicit Operand(int64_t count) : data(static_cast<size_t>(count)) {}
  Operand(int64_t count, uint64_t seed) : Operand(count) {
    std::mt19937_64 engine(seed);
    std::normal_distribution<double> normal;
    for (T& x : data) x = T(static_cast<Accumulator<T>>(normal(engine)));
  }
  void poison() {
    for (T& x : data) x = T(std::numeric_limits<Accumulator<T>>::quiet_NaN());
  }
  Tensor tensor(const Shape& shape) { return cpu_tensor(data.data(), shape); }
  Values values() const {
    Values result;
    for (const T& x : data) result.push_back(static_cast<double>(static_cast<Accumulator<T>>(x)));
    return result;
  }
};

/// Tensors of a test on the device under test, beside those on the host that they copy.
class DeviceTensors {
 public:
  explicit DeviceTensors(Backend& ops) : ops_(ops) {}

  Tensor zeros(const Shape& shape, DType dtype) {
    Tensor tensor{.data = nullptr, .shape = shape, .dtype = dtype, .device = ops_.device()};
    blocks_.push_back(ops_.allocate(tensor.bytes()));
    tensor.data = blocks_.back().get();
    return tensor;
  }
  Tensor upload(const Tensor& host) {
    if (!host) return host;
    const Tensor tensor = zeros(host.shape, host.dtype);
    ops_.upload(tensor, host.data);
    return tensor;
  }
  AttentionInputs upload(AttentionInputs host) {
    for (Tensor* x : {&host.q, &host.k, &host.v, &host.document_start}) *x = upload(*x);
    return host;
  }
  void download(const Tensor& host, const Tensor& tensor) { ops_.download(host.data, tensor); }

 private:
  Backend& ops_;
  std::vector<std::shared_ptr<void>> blocks_;
};

/// Operands and results of one case; results hold NaN until they are computed.
template <class T>
struct AttentionRun {
  using Real = Accumulator<T>;
  AttentionCase c;
  Operand<T> q, k, v, dout, out, dq, dk, dv;
  Operand<Real> lse, delta;

  explicit AttentionRun(const AttentionCase& setup, uint64_t seed = 1)
      : c(setup),
        q(c.query_shape().numel(), seed),
        k(c.key_shape().numel(), seed + 1),
        v(c.key_shape().numel(), seed + 2),
        dout(c.out_shape().numel(), seed + 3),
        out(c.out_shape().numel()),
        dq(c.query_shape().numel()),
        dk(c.key_shape().numel()),
        dv(c.key_shape().numel()),
        lse(c.num_rows()),
        delta(c.num_rows()) {
    if (c.query_runs.empty()) c.query_runs = {{c.query_offset, c.query_offset + c.queries}};
    if (c.key_runs.empty()) c.key_runs = {{c.key_offset, c.key_offset + c.keys}};
  }

  AttentionInputs inputs() {
    return {.q = q.tensor(c.query_shape()),
            .k = k.tensor(c.key_shape()),
            .v = v.tensor(c.key_shape()),
            .mask = c.mask,
            .document_start = c.document_start.empty()
                                  ? Tensor{}
                                  : cpu_tensor(c.document_start.data(), {c.batch, c.queries}),
            .scale = c.scale(),
            .query_copies = c.num_query_copies(),
            .first_query_copy = c.first_query_copy,
            .first_key_copy = c.first_key_copy,
            .query_runs = c.query_runs,
            .key_runs = c.key_runs};
  }
  void forward(int num_threads = 0) {
    out.poison();
    lse.poison();
    const auto ops = make_backend(test::test_device(), {.num_threads = num_threads});
    DeviceTensors device(*ops);
    const Tensor device_out = device.upload(out.tensor(c.out_shape()));
    const Tensor device_lse = device.upload(lse.tensor(c.row_shape()));
    ops->attention_forward(device_out, device_lse, device.upload(inputs()));
    device.download(out.tensor(c.out_shape()), device_out);
    device.download(lse.tensor(c.row_shape()), device_lse);
  }
  void backward(int num_threads = 0) {
    for (Operand<T>* x : {&dq, &dk, &dv}) x->poison();
    delta.poison();
    const auto ops = make_backend(test::test_device(), {.num_threads = num_threads});
    DeviceTensors device(*ops);
    const Backend::AttentionBackward arguments{
        .gradients = {.dq = device.upload(dq.tensor(c.query_shape())),
                      .dk = device.upload(dk.tensor(c.key_shape())),
                      .dv = device.upload(dv.tensor(c.key_shape()))},
        .delta = device.upload(delta.tensor(c.row_shape())),
        .dout = device.upload(dout.tensor(c.out_shape())),
        .out = device.upload(out.tensor(c.out_shape())),
        .lse = device.upload(lse.tensor(c.row_shape()))};
    ops->attention_backward(arguments, device.upload(inputs()));
    device.download(dq.tensor(c.query_shape()), arguments.gradients.dq);
    device.download(dk.tensor(c.key_shape()), arguments.gradients.dk);
    device.download(dv.tensor(c.key_shape()), arguments.gradients.dv);
  }
};

inline constexpr double kTolerance = 4.0;  // the c of "c * eps * size", for all comparisons

/// Largest |got - expected| / (c * eps * size); at most 1 is right. NaN counts as infinite.
template <class T>
double error_ratio(const Operand<T>& got, const Sums& expected) {
  double worst = 0;
  const Values values = got.values();
  for (size_t i = 0; i < values.size(); ++i) {
    const double error = std::abs(values[i] - expected.value[i]);
    if (error == 0) continue;
    const double ratio = error / (kTolerance * dtype_epsilon(DTypeOf<T>::value) * expected.size[i]);
    worst = std::max(worst, std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio);
  }
  return worst;
}

/// The same for lse; equal infinities are right.
template <class Real>
double lse_error_ratio(const Operand<Real>& got, const ReferenceForward& expected) {
  double worst = 0;
  for (size_t i = 0; i < expected.lse.size(); ++i) {
    const double value = got.data[i];
    if (value == expected.lse[i]) continue;
    const double ratio = std::abs(value - expected.lse[i]) /
                         (kTolerance * dtype_epsilon(DTypeOf<Real>::value) * expected.lse_size[i]);
    worst = std::max(worst, std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio);
  }
  return worst;
}

}  // namespace phalanx::testing
