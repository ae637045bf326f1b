// Arrays of integers in NumPy's .npy format (version 1.0), written in place through a mapping and
// read through one: an index of any size takes no memory of its own, and ranks of a node share it.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "data/file_io.h"
#include "kernels/base/error.h"

namespace phalanx {

enum class NpyType : uint8_t { i16, i32, u32, i64 };

template <class T>
inline constexpr NpyType kNpyTypeOf = [] {
  if constexpr (std::is_same_v<T, int16_t>) return NpyType::i16;
  if constexpr (std::is_same_v<T, int32_t>) return NpyType::i32;
  if constexpr (std::is_same_v<T, uint32_t>) return NpyType::u32;
  if constexpr (std::is_same_v<T, int64_t>) return NpyType::i64;
}();

/// Rows and columns; a vector has columns == 0.
struct NpyShape {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t numel() const { return rows * (columns == 0 ? 1 : columns); }
  bool operator==(const NpyShape&) const = default;
};

/// A new array, zero until filled; it becomes visible under its name with `publish`.
class NpyWriter {
 public:
  NpyWriter(const std::string& path, NpyType type, const NpyShape& shape);

  template <class T>
  std::span<T> values() {
    check(kNpyTypeOf<T> == type_, file_.target(), " is being written as another type");
    return {reinterpret_cast<T*>(mapping_.writable() + header_bytes_),
            static_cast<size_t>(shape_.numel())};
  }
  void publish() { file_.publish(); }

 private:
  TemporaryFile file_;
  NpyType type_;
  NpyShape shape_;
  int64_t header_bytes_;
  MappedFile mapping_;
};

/// An existing array. Any thread.
class NpyArray {
 public:
  /// Opens `path`, which must hold exactly this type and shape.
  NpyArray(const std::string& path, NpyType type, const NpyShape& shape);

  int64_t size() const { return shape_.numel(); }
  /// Value `i` in row-major order; throws outside.
  int64_t at(int64_t i) const;

 private:
  std::string path_;
  MappedFile mapping_;
  NpyType type_;
  NpyShape shape_;
  int64_t header_bytes_ = 0;
};

}  // namespace phalanx
