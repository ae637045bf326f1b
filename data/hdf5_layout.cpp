// Datasets of Hdf5File whose bytes are put elsewhere: by position in the file, or in other files.
#include <limits>

#include "data/hdf5_file.h"
#include "data/hdf5_handles.h"

namespace phalanx {

using namespace hdf5;

void Hdf5File::reserve_dataset(const std::string& name, const Shape& shape, DType dtype) {
  const Property creation(H5Pcreate(H5P_DATASET_CREATE), path_, ": ", name);
  const bool ok = H5Pset_layout(creation, H5D_CONTIGUOUS) >= 0 &&
                  H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY) >= 0 &&
                  H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER) >= 0;
  if (!ok) fail(path_, ": cannot describe ", name, ": ", reason());
  add_dataset(name, shape, dtype, creation);
}

int64_t Hdf5File::dataset_place(const std::string& name) const {
  const Dataset dataset(H5Dopen2(handle_, name.c_str(), H5P_DEFAULT), path_, ": no dataset ", name);
  const haddr_t place = H5Dget_offset(dataset);
  check(place != HADDR_UNDEF, path_, ": ", name, " has no place of its own in the file");
  return static_cast<int64_t>(place);
}

void Hdf5File::create_virtual_dataset(const std::string& name, const Shape& shape, DType dtype,
                                      std::span<const VirtualBlock> blocks) {
  check(dtype == DType::f32 || dtype == DType::f64, path_, ": ", name,
        " cannot be virtual: missing elements read as NaN, which ", dtype_name(dtype), " has not");
  const Property creation(H5Pcreate(H5P_DATASET_CREATE), path_, ": ", name);
  const double missing = std::numeric_limits<double>::quiet_NaN();
  if (H5Pset_fill_value(creation, H5T_NATIVE_DOUBLE, &missing) < 0)
    fail(path_, ": ", name, ": ", reason());
  const Space whole(make_space(shape), path_, ": ", name, " ", shape.to_string());
  for (const VirtualBlock& block : blocks) {
    bool fits = block.shape.rank() == shape.rank() && shape.rank() <= 2;
    Sizes start{};
    for (int dim = 0; fits && dim < shape.rank(); ++dim) {
      const int64_t first = block.first[static_cast<size_t>(dim)];
      fits = 0 <= first && block.shape[dim] <= shape[dim] - first;
      start[static_cast<size_t>(dim)] = static_cast<hsize_t>(first);
    }
    check(fits, path_, ": ", name, " is ", shape.to_string(), "; a block ", block.shape.to_string(),
          " at [", block.first[0], ", ", block.first[1], "] does not fit");
    // '%' begins a pattern there.
    check((block.file + block.dataset).find('%') == std::string::npos, path_, ": ", name,
          ": neither file ", block.file, " nor dataset ", block.dataset, " may contain '%'");
    const Space source(make_space(block.shape), path_, ": ", name);
    const bool ok =
        H5Sselect_hyperslab(whole, H5S_SELECT_SET, start.data(), nullptr,
                            sizes_of(block.shape).data(), nullptr) >= 0 &&
        H5Pset_virtual(creation, whole, block.file.c_str(), block.dataset.c_str(), source) >= 0;
    if (!ok) fail(path_, ": ", name, ": cannot include ", block.dataset, ": ", reason());
  }
  add_dataset(name, shape, dtype, creation);
}

}  // namespace phalanx
