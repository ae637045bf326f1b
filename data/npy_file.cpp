// The .npy header and its checks.
#include "data/npy_file.h"

#include <fmt/format.h>

#include <cstring>
#include <string_view>

namespace phalanx {
namespace {

int64_t type_bytes(NpyType type) {
  return type == NpyType::i16 ? 2 : type == NpyType::i64 ? 8 : 4;
}

std::string_view type_descriptor(NpyType type) {
  switch (type) {
    case NpyType::i16:
      return "<i2";
    case NpyType::i32:
      return "<i4";
    case NpyType::u32:
      return "<u4";
    case NpyType::i64:
      return "<i8";
  }
  return "?";
}

/// Magic, version, length and a Python dict padded with spaces so that the data is aligned to 64.
std::string make_header(NpyType type, const NpyShape& shape) {
  constexpr size_t kPrefixBytes = 10;
  constexpr size_t kAlignment = 64;
  const std::string sizes = shape.columns == 0 ? fmt::format("({},)", shape.rows)
                                               : fmt::format("({}, {})", shape.rows, shape.columns);
  std::string dict = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}",
                                 type_descriptor(type), sizes);
  while ((kPrefixBytes + dict.size() + 1) % kAlignment != 0) dict += ' ';
  dict += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(dict.size() & 0xff);
  header += static_cast<char>(dict.size() >> 8);
  return header + dict;
}

/// Gives the empty file at `path` its header and its full size.
const std::string& prepare_file(const std::string& path, const std::string& header,
                                int64_t data_bytes) {
  FileWriter writer(path);
  writer.write(header.data(), static_cast<int64_t>(header.size()));
  writer.flush();
  reserve_file(path, static_cast<int64_t>(header.size()) + data_bytes);
  return path;
}

}  // namespace

NpyWriter::NpyWriter(const std::string& path, NpyType type, const NpyShape& shape)
    : file_(path),
      type_(type),
      shape_(shape),
      header_bytes_(static_cast<int64_t>(make_header(type, shape).size())),
      mapping_(
          prepare_file(file_.path(), make_header(type, shape), shape.numel() * type_bytes(type)),
          MappedFile::Access::write) {}

NpyArray::NpyArray(const std::string& path, NpyType type, const NpyShape& shape)
    : path_(path), mapping_(path, MappedFile::Access::read), type_(type), shape_(shape) {
  const std::string header = make_header(type, shape);
  const auto bytes = mapping_.bytes();
  header_bytes_ = static_cast<int64_t>(header.size());
  const auto expected = static_cast<size_t>(header_bytes_ + shape.numel() * type_bytes(type));
  check(bytes.size() == expected && std::memcmp(bytes.data(), header.data(), header.size()) == 0,
        path, " (", bytes.size(), " bytes) is not the index it should be (", expected,
        " bytes); delete it to have it built again");
  mapping_.expect_random_access();
}

int64_t NpyArray::at(int64_t i) const {
  check(i >= 0 && i < size(), path_, " has ", size(), " values, none at ", i);
  const auto load = [&]<class T>(T value) {
    std::memcpy(&value, mapping_.bytes().data() + header_bytes_ + i * int64_t{sizeof(T)},
                sizeof(T));
    return static_cast<int64_t>(value);
  };
  switch (type_) {
    case NpyType::i16:
      return load(int16_t{});
    case NpyType::i32:
      return load(int32_t{});
    case NpyType::u32:
      return load(uint32_t{});
    case NpyType::i64:
      return load(int64_t{});
  }
  return 0;
}

}  // namespace phalanx
