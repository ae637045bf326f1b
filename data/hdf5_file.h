// HDF5 files: named tensors and text attributes. A thin layer over the serial C library that closes
// what it opens and turns errors into exceptions naming file and object.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/file_io.h"
#include "kernels/base/tensor.h"

namespace phalanx {

/// A rectangle of a virtual dataset: all of dataset `dataset` of `file`, put at `first`.
struct VirtualBlock {
  std::string file;
  std::string dataset;
  Shape shape;
  std::array<int64_t, 2> first{};  // as many as dims
};

/// One open file, used by the thread that opened it. Threads may have files of their own side by
/// side: the library, which must be a thread-safe build, lets one of them in at a time, so that a
/// long `write` in one holds up the others. Tensors are host memory. f64, f32, i64, i32 and u8 are
/// stored as such (little-endian), bf16 as 16-bit words with the attribute "dtype" = "bf16".
class Hdf5File {
 public:
  /// A new file under a temporary name; it gets the name `path` by `publish` and vanishes without.
  static Hdf5File create(const std::string& path);
  /// An existing file, for reading.
  static Hdf5File open(const std::string& path);
  ~Hdf5File();
  Hdf5File(Hdf5File&&) noexcept;
  Hdf5File& operator=(Hdf5File&&) = delete;

  /// Adds a dataset; groups in `name` ("a/b/weight") are made as needed. The same calls and values
  /// give the same file, byte for byte.
  void create_dataset(const std::string& name, const Shape& shape, DType dtype);
  /// Adds a dataset whose bytes lie in one piece and have their place in the file at once, not
  /// filled: for those who put them there themselves.
  void reserve_dataset(const std::string& name, const Shape& shape, DType dtype);
  /// Where the bytes of such a dataset begin in the file.
  int64_t dataset_place(const std::string& name) const;
  /// Adds a dataset whose rectangles are whole datasets of other files (a virtual dataset). File
  /// names are relative to this file's folder. What is in no rectangle, or in a file that is not
  /// there, reads as NaN.
  void create_virtual_dataset(const std::string& name, const Shape& shape, DType dtype,
                              std::span<const VirtualBlock> blocks);
  /// Writes all of an existing dataset of that shape and dtype.
  void write(const std::string& name, const Tensor& tensor);
  /// Writes the block of the dataset that has the tensor's shape and begins at `first`, one index
  /// per dim.
  void write_block(const std::string& name, std::span<const int64_t> first, const Tensor& tensor);
  /// Reads all of a dataset into a tensor of the same shape and dtype.
  void read(const std::string& name, const Tensor& tensor) const;
  /// Reads such a block.
  void read_block(const std::string& name, std::span<const int64_t> first,
                  const Tensor& tensor) const;

  Shape shape(const std::string& name) const;
  DType dtype(const std::string& name) const;
  /// Full names of all datasets, sorted.
  std::vector<std::string> datasets() const;

  /// Text attributes of an object: a dataset, a group, or "/" for the file.
  void set_attribute(const std::string& object, const std::string& name, const std::string& value);
  /// The same with integers, which `attribute` does not read.
  void set_attribute(const std::string& object, const std::string& name,
                     std::span<const int64_t> values);
  std::string attribute(const std::string& object, const std::string& name) const;
  bool has_attribute(const std::string& object, const std::string& name) const;

  /// Closes a created file, makes it durable and gives it its name. Nothing else may follow.
  void publish();

 private:
  Hdf5File(std::string path, int64_t handle, std::unique_ptr<TemporaryFile> temporary);
  enum class Direction { read, write };
  void transfer(Direction direction, const std::string& name, std::span<const int64_t> first,
                const Tensor& tensor) const;
  struct AttributeValue {
    int64_t type, space;  // hid_t
    const void* data;
  };
  void put_attribute(const std::string& object, const std::string& name,
                     const AttributeValue& value);
  void add_dataset(const std::string& name, const Shape& shape, DType dtype, int64_t creation);
  int64_t open_object(const std::string& name) const;

  std::string path_;  // for messages
  int64_t handle_;    // hid_t, kept out of the header
  std::unique_ptr<TemporaryFile> temporary_;
};

}  // namespace phalanx
