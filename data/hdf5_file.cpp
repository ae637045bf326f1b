// The HDF5 C API behind hdf5_file.h.
#include "data/hdf5_file.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "data/hdf5_handles.h"
#include "kernels/base/flight_recorder.h"

namespace phalanx {

using namespace hdf5;

namespace {

/// Before the first call of the library in a thread.
void start_library() {
  // The library does not clean up at exit, because it crashes there if the disk was full when a
  // file was closed: it closes that file again. What this program opens it closes itself.
  H5dont_atexit();
  hbool_t thread_safe = false;
  check(H5is_library_threadsafe(&thread_safe) >= 0 && thread_safe,
        "this HDF5 library is not thread-safe, but checkpoints are written by a thread of their "
        "own; install one built with --enable-threadsafe, such as Debian's serial libhdf5-103-1 "
        "(package libhdf5-dev)");
  // By default every error is printed to stderr; here they become exceptions.
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

// The format's limit for attributes beside their object; longer ones are of variable length.
constexpr size_t kLongestFixedText = size_t{64} << 10;
// No tensor is larger; keeps products of sizes inside 64 bits.
constexpr int64_t kMostElements = int64_t{1} << 44;

/// First index of a whole tensor.
std::span<const int64_t> origin(const Tensor& tensor) {
  static constexpr std::array<int64_t, Shape::kMaxRank> kZeros{};
  return std::span(kZeros).first(static_cast<size_t>(tensor.shape.rank()));
}

}  // namespace

Hdf5File::Hdf5File(std::string path, int64_t handle, std::unique_ptr<TemporaryFile> temporary)
    : path_(std::move(path)), handle_(handle), temporary_(std::move(temporary)) {
  check(handle_ >= 0, "cannot open ", path_, " as HDF5: ", handle_ >= 0 ? "" : reason());
}

Hdf5File::Hdf5File(Hdf5File&& other) noexcept
    : path_(std::move(other.path_)),
      handle_(std::exchange(other.handle_, kClosed)),
      temporary_(std::move(other.temporary_)) {}

Hdf5File::~Hdf5File() {
  if (handle_ >= 0) H5Fclose(handle_);
}

Hdf5File Hdf5File::create(const std::string& path) {
  start_library();
  auto temporary = std::make_unique<TemporaryFile>(path);
  const hid_t handle =
      H5Fcreate(temporary->path().c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  return {path, handle, std::move(temporary)};
}

Hdf5File Hdf5File::open(const std::string& path) {
  start_library();
  check_usage(file_exists(path), "there is no file ", path);
  return {path, H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), nullptr};
}

int64_t Hdf5File::open_object(const std::string& name) const {
  return H5Oopen(handle_, name.c_str(), H5P_DEFAULT);
}

void Hdf5File::add_dataset(const std::string& name, const Shape& shape, DType dtype,
                           int64_t creation) {
  {
    const Space space(make_space(shape), path_, ": ", name, " ", shape.to_string());
    const Property links(H5Pcreate(H5P_LINK_CREATE), path_, ": ", name);
    H5Pset_create_intermediate_group(links, 1);
    H5Pset_obj_track_times(creation, false);  // because a time would make every file another
    const Dataset dataset(
        H5Dcreate2(handle_, name.c_str(), file_type(dtype), space, links, creation, H5P_DEFAULT),
        path_, ": cannot create the dataset ", name);
  }
  if (dtype == DType::bf16) set_attribute(name, "dtype", "bf16");
}

void Hdf5File::create_dataset(const std::string& name, const Shape& shape, DType dtype) {
  const Property creation(H5Pcreate(H5P_DATASET_CREATE), path_, ": ", name);
  add_dataset(name, shape, dtype, creation);
}

Shape Hdf5File::shape(const std::string& name) const {
  const Dataset dataset(H5Dopen2(handle_, name.c_str(), H5P_DEFAULT), path_, ": no dataset ", name);
  const Space space(H5Dget_space(dataset), path_, ": ", name);
  const int rank = H5Sget_simple_extent_ndims(space);
  check(rank >= 0 && rank <= Shape::kMaxRank, path_, ": ", name, " has ", rank,
        " dims; at most 5 are possible");
  Sizes sizes{};
  H5Sget_simple_extent_dims(space, sizes.data(), nullptr);
  int64_t elements = 1;
  for (const hsize_t size : std::span(sizes).first(static_cast<size_t>(rank))) {
    check(size <= static_cast<hsize_t>(kMostElements / std::max<int64_t>(elements, 1)), path_, ": ",
          name, " has a dim of ", size, ", too many elements for a tensor");
    elements *= static_cast<int64_t>(size);
  }
  const auto s = [&](size_t dim) { return static_cast<int64_t>(sizes[dim]); };
  switch (rank) {
    case 0:
      return {};
    case 1:
      return {s(0)};
    case 2:
      return {s(0), s(1)};
    case 3:
      return {s(0), s(1), s(2)};
    case 4:
      return {s(0), s(1), s(2), s(3)};
    default:
      return {s(0), s(1), s(2), s(3), s(4)};
  }
}

DType Hdf5File::dtype(const std::string& name) const {
  if (has_attribute(name, "dtype") && attribute(name, "dtype") == "bf16") return DType::bf16;
  const Dataset dataset(H5Dopen2(handle_, name.c_str(), H5P_DEFAULT), path_, ": no dataset ", name);
  const Type type(H5Dget_type(dataset), path_, ": ", name);
  for (const DType dtype : {DType::f64, DType::f32, DType::i64, DType::i32, DType::u8})
    if (H5Tequal(type, file_type(dtype)) > 0) return dtype;
  fail(path_, ": ", name, " has an element type other than f64, f32, bf16, i64, i32, u8");
}

void Hdf5File::transfer(Direction direction, const std::string& name,
                        std::span<const int64_t> first, const Tensor& tensor) const {
  const Shape whole = shape(name);
  check(tensor.device == Device::cpu, path_, ": ", name, " needs host memory");
  check(tensor.dtype == dtype(name), path_, ": ", name, " holds ", dtype_name(dtype(name)),
        ", the tensor ", dtype_name(tensor.dtype));
  const auto dims = static_cast<size_t>(whole.rank());
  bool fits = first.size() == dims && tensor.shape.rank() == whole.rank();
  Sizes start{};
  for (size_t dim = 0; fits && dim < dims; ++dim) {
    const auto d = static_cast<int>(dim);
    fits = 0 <= first[dim] && tensor.shape[d] <= whole[d] - first[dim];
    start[dim] = static_cast<hsize_t>(first[dim]);
  }
  check(fits, path_, ": ", name, " is ", whole.to_string(), "; a tensor ", tensor.shape.to_string(),
        " at ", fmt::format("[{}]", fmt::join(first, ", ")), " does not fit");
  if (tensor.numel() == 0) return;

  const FlightRange moving(
      flight_entry(FlightKind::file, direction == Direction::write ? "writing" : "reading", path_));
  const Dataset dataset(H5Dopen2(handle_, name.c_str(), H5P_DEFAULT), path_, ": no dataset ", name);
  const Space memory(make_space(tensor.shape), path_, ": ", name);
  const Space file(H5Dget_space(dataset), path_, ": ", name);
  if (dims > 0)
    H5Sselect_hyperslab(file, H5S_SELECT_SET, start.data(), nullptr, sizes_of(tensor.shape).data(),
                        nullptr);
  // The stored type serves for memory too, because the host is little-endian like the file.
  const hid_t type = file_type(tensor.dtype);
  const herr_t status = direction == Direction::write
                            ? H5Dwrite(dataset, type, memory, file, H5P_DEFAULT, tensor.data)
                            : H5Dread(dataset, type, memory, file, H5P_DEFAULT, tensor.data);
  if (status < 0) fail(path_, ": cannot transfer ", name, ": ", reason());
}

void Hdf5File::write(const std::string& name, const Tensor& tensor) {
  check(tensor.shape == shape(name), path_, ": ", name, " is ", shape(name).to_string(),
        ", the tensor ", tensor.shape.to_string());
  transfer(Direction::write, name, origin(tensor), tensor);
}

void Hdf5File::write_block(const std::string& name, std::span<const int64_t> first,
                           const Tensor& tensor) {
  transfer(Direction::write, name, first, tensor);
}

void Hdf5File::read(const std::string& name, const Tensor& tensor) const {
  check(tensor.shape == shape(name), path_, ": ", name, " is ", shape(name).to_string(),
        ", the tensor ", tensor.shape.to_string());
  transfer(Direction::read, name, origin(tensor), tensor);
}

void Hdf5File::read_block(const std::string& name, std::span<const int64_t> first,
                          const Tensor& tensor) const {
  transfer(Direction::read, name, first, tensor);
}

std::vector<std::string> Hdf5File::datasets() const {
  std::vector<std::string> names;
  const auto visit = [](hid_t root, const char* name, const H5L_info_t*, void* out) -> herr_t {
    const hid_t object = H5Oopen(root, name, H5P_DEFAULT);
    if (object < 0) return -1;
    if (H5Iget_type(object) == H5I_DATASET)
      static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    return H5Oclose(object);
  };
  const herr_t status = H5Lvisit(handle_, H5_INDEX_NAME, H5_ITER_INC, visit, &names);
  if (status < 0) fail(path_, ": cannot list datasets: ", reason());
  std::sort(names.begin(), names.end());
  return names;
}

void Hdf5File::set_attribute(const std::string& object, const std::string& name,
                             const std::string& value) {
  const Type type(H5Tcopy(H5T_C_S1), path_, ": attribute ", name);
  // Variable length, because an attribute of fixed length ends at 64 KiB with its header.
  H5Tset_size(type, H5T_VARIABLE);
  H5Tset_cset(type, H5T_CSET_UTF8);
  const Space space(H5Screate(H5S_SCALAR), path_, ": attribute ", name);
  const char* text = value.c_str();
  put_attribute(object, name, {type, space, &text});
}

void Hdf5File::set_attribute(const std::string& object, const std::string& name,
                             std::span<const int64_t> values) {
  const Space space(make_space({static_cast<int64_t>(values.size())}), path_, ": ", name);
  put_attribute(object, name, {file_type(DType::i64), space, values.data()});
}

void Hdf5File::put_attribute(const std::string& object, const std::string& name,
                             const AttributeValue& value) {
  const Object target(open_object(object), path_, ": no object ", object);
  if (H5Aexists(target, name.c_str()) > 0) H5Adelete(target, name.c_str());
  const Attribute attribute(
      H5Acreate2(target, name.c_str(), value.type, value.space, H5P_DEFAULT, H5P_DEFAULT), path_,
      ": cannot create the attribute ", name, " of ", object);
  if (H5Awrite(attribute, value.type, value.data) < 0)
    fail(path_, ": cannot write the attribute ", name, " of ", object, ": ", reason());
}

bool Hdf5File::has_attribute(const std::string& object, const std::string& name) const {
  const Object target(open_object(object), path_, ": no object ", object);
  return H5Aexists(target, name.c_str()) > 0;
}

std::string Hdf5File::attribute(const std::string& object, const std::string& name) const {
  const Object target(open_object(object), path_, ": no object ", object);
  const Attribute attribute(H5Aopen(target, name.c_str(), H5P_DEFAULT), path_, ": ", object,
                            " has no attribute ", name);
  const Type stored(H5Aget_type(attribute), path_, ": attribute ", name);
  check(H5Tget_class(stored) == H5T_STRING, path_, ": attribute ", name, " of ", object,
        " is not text");
  const Space space(H5Aget_space(attribute), path_, ": attribute ", name);
  // HDF5 writes as many texts as there are, whatever room there is.
  check(H5Sget_simple_extent_npoints(space) == 1, path_, ": attribute ", name, " of ", object,
        " is not one text but ", H5Sget_simple_extent_npoints(space));
  if (H5Tis_variable_str(stored) <= 0) {  // fixed length, as other programs write it
    const size_t size = H5Tget_size(stored);
    check(size <= kLongestFixedText, path_, ": attribute ", name, " of ", object, " has ", size,
          " characters; at most ", kLongestFixedText, " are possible");
    std::string text(size, '\0');
    if (H5Aread(attribute, stored, text.data()) < 0) fail(path_, ": ", name, ": ", reason());
    return text.substr(0, text.find('\0'));
  }
  char* text = nullptr;
  if (H5Aread(attribute, stored, &text) < 0) fail(path_, ": ", name, ": ", reason());
  std::string value = text == nullptr ? "" : text;
  H5free_memory(text);
  return value;
}

void Hdf5File::publish() {
  check(temporary_ != nullptr && handle_ >= 0, path_, " is not a file being written");
  const herr_t status = H5Fclose(std::exchange(handle_, kClosed));
  if (status < 0) fail(path_, ": cannot close: ", reason());
  temporary_->publish();
}

}  // namespace phalanx
