// Checks of the copies between host and device.
#include "kernels/device_ops.h"

#include "kernels/op_scope.h"

namespace phalanx {

int64_t workspace_bytes(Device device) {
  return device == Device::cuda ? int64_t{64} << 20 : 0;
}

int64_t staging_bytes(Device device) {
  return device == Device::cuda ? int64_t{32} << 20 : 0;
}

void DeviceOps::upload(const Tensor& target, const void* source) {
  OpScope scope("upload", device());
  scope.placed("target", target);
  upload_impl(target, source);
}

void DeviceOps::upload_early(const Tensor& target, const void* source) {
  OpScope scope("upload_early", device());
  scope.placed("target", target);
  upload_early_impl(target, source);
}

void DeviceOps::upload_columns(const Tensor& target, int64_t column, int64_t columns,
                               const void* source) {
  OpScope scope("upload_columns", device());
  scope.placed("target", target);
  scope.rank("target", target, 2);
  scope.require(0 <= column && 0 <= columns && column + columns <= target.shape[1], "target",
                target, "has no columns ", column, " to ", column + columns);
  upload_columns_impl(target, column, columns, source);
}

void DeviceOps::download(void* target, const Tensor& source) {
  OpScope scope("download", device());
  scope.placed("source", source);
  download_impl(target, source);
}

std::unique_ptr<RecordedOps> DeviceOps::record(const std::function<void()>&) {
  fail("the ", device_name(device()), " backend cannot record ops; leave --cuda-graph out");
}

}  // namespace phalanx
