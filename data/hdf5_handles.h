// What the sources of Hdf5File share: handles that close themselves, types, shapes, and reasons.
#pragma once

#include <hdf5.h>

#include <array>
#include <string>

#include "kernels/base/error.h"
#include "kernels/base/tensor.h"

namespace phalanx::hdf5 {

inline constexpr hid_t kClosed = -1;

/// The innermost reason in HDF5's error stack.
std::string reason();

/// Any HDF5 identifier; closed by `Close`. Throws if it is none, beginning with `place`.
template <herr_t (*Close)(hid_t)>
class Handle {
 public:
  template <class... Place>
  explicit Handle(hid_t value, const Place&... place) : value_(value) {
    if (value_ < 0) fail(place..., ": ", reason());
  }
  ~Handle() { Close(value_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator hid_t() const { return value_; }  // NOLINT(google-explicit-constructor)

 private:
  hid_t value_;
};
using Dataset = Handle<H5Dclose>;
using Space = Handle<H5Sclose>;
using Type = Handle<H5Tclose>;
using Property = Handle<H5Pclose>;
using Attribute = Handle<H5Aclose>;
using Object = Handle<H5Oclose>;

/// How elements are stored.
hid_t file_type(DType dtype);

using Sizes = std::array<hsize_t, Shape::kMaxRank>;
Sizes sizes_of(const Shape& shape);
/// A new dataspace of that shape.
hid_t make_space(const Shape& shape);

}  // namespace phalanx::hdf5
