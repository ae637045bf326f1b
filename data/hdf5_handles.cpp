// Types, shapes and reasons of HDF5.
#include "data/hdf5_handles.h"

namespace phalanx::hdf5 {
namespace {

/// "file write failed: time = ..., errno = 27, error message = 'File too large', buf = 0x..." as
/// "file write failed: File too large"; any other text as it is.
std::string without_noise(const std::string& text) {
  constexpr std::string_view kMark = "error message = '";
  const size_t mark = text.find(kMark);
  const size_t end = mark == text.npos ? mark : text.find('\'', mark + kMark.size());
  if (end == text.npos) return text;
  const size_t begin = mark + kMark.size();
  return text.substr(0, text.find(": ")) + ": " + text.substr(begin, end - begin);
}

}  // namespace

std::string reason() {
  std::string reason;
  const auto take_first = [](unsigned, const H5E_error2_t* error, void* out) -> herr_t {
    auto& text = *static_cast<std::string*>(out);
    if (text.empty() && error->desc != nullptr) text = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &reason);
  H5Eclear2(H5E_DEFAULT);
  std::erase(reason, '\n');  // some reasons hold the time of day with its line end
  return reason.empty() ? "unknown HDF5 error" : without_noise(reason);
}

hid_t file_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return H5T_IEEE_F64LE;
    case DType::f32:
      return H5T_IEEE_F32LE;
    case DType::bf16:
      return H5T_STD_U16LE;
    case DType::i64:
      return H5T_STD_I64LE;
    case DType::i32:
      return H5T_STD_I32LE;
    case DType::u8:
      return H5T_STD_U8LE;
  }
  return kClosed;
}

Sizes sizes_of(const Shape& shape) {
  Sizes sizes{};
  for (int dim = 0; dim < shape.rank(); ++dim)
    sizes[static_cast<size_t>(dim)] = static_cast<hsize_t>(shape[dim]);
  return sizes;
}

hid_t make_space(const Shape& shape) {
  if (shape.rank() == 0) return H5Screate(H5S_SCALAR);
  return H5Screate_simple(shape.rank(), sizes_of(shape).data(), nullptr);
}

}  // namespace phalanx::hdf5
