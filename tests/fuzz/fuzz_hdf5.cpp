// Fuzz target of the HDF5 wrapper: whatever datasets and texts are asked for, they are refused by
// Error or come back bit for bit, whole and in blocks, also when the data was put in by position.
//
// The bytes of a file are not fuzzed, because libhdf5 itself does not stand that: version 1.10.8
// reads and writes out of bounds while it opens objects whose headers were damaged. What this
// program promises instead is that no byte of a checkpoint reaches the library unless its checksum
// is right (fuzz_checkpoint); a file of weights has no checksum.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "data/file_io.h"
#include "data/hdf5_file.h"
#include "kernels/base/error.h"

namespace {

using namespace phalanx;
namespace fs = std::filesystem;

/// Bytes of the input, zeros behind its end.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool is_over() const { return at_ >= size_; }
  uint8_t byte() { return at_ < size_ ? data_[at_++] : uint8_t{0}; }
  /// Up to the next zero, at most `most` characters.
  std::string text(size_t most) {
    std::string text;
    for (uint8_t next = byte(); next != 0 && text.size() < most; next = byte())
      text += static_cast<char>(next);
    return text;
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

struct Entry {
  std::string name;
  std::string text;  // its attribute
  Shape shape;
  DType dtype = DType::f32;
  bool by_position = false;
  std::vector<uint8_t> values;
  Tensor tensor() { return {values.data(), shape, dtype, Device::cpu}; }
};

Shape draw_shape(Input& input) {
  const auto d = [&] { return int64_t{input.byte() % 6}; };
  switch (input.byte() % 4) {
    case 0:
      return {};
    case 1:
      return {d()};
    case 2: {
      const int64_t rows = d();
      return {rows, d()};
    }
    default: {
      const int64_t first = d();
      const int64_t second = d();
      return {first, second, d()};
    }
  }
}

Entry draw_entry(Input& input) {
  constexpr std::array kTypes{DType::f64, DType::f32, DType::bf16,
                              DType::i64, DType::i32, DType::u8};
  Entry entry;
  entry.dtype = kTypes[input.byte() % kTypes.size()];
  entry.by_position = input.byte() % 2 == 1;
  entry.shape = draw_shape(input);
  entry.name = input.text(24);
  entry.text = input.text(64);
  entry.values.resize(static_cast<size_t>(entry.shape.numel() * dtype_bytes(entry.dtype)));
  for (uint8_t& value : entry.values) value = input.byte();
  return entry;
}

/// Whether the file has it now.
bool add(Hdf5File& file, Entry& entry) {
  try {
    if (entry.by_position)
      file.reserve_dataset(entry.name, entry.shape, entry.dtype);
    else
      file.create_dataset(entry.name, entry.shape, entry.dtype);
  } catch (const Error&) {  // no name, a name that is taken, a place that cannot be
    return false;
  }
  if (!entry.by_position) file.write(entry.name, entry.tensor());
  file.set_attribute(entry.name, "text", entry.text);
  return true;
}

/// A rectangle anywhere, mostly not inside.
void try_block(const Hdf5File& file, const Entry& entry, Input& input) {
  std::array<int64_t, 3> first{};
  for (int64_t& index : first) index = static_cast<int8_t>(input.byte());
  const Shape shape = draw_shape(input);
  std::vector<uint8_t> values(static_cast<size_t>(shape.numel() * dtype_bytes(entry.dtype)));
  const auto rank = static_cast<size_t>(input.byte() % 4);
  try {
    file.read_block(entry.name, std::span(first).first(rank),
                    {values.data(), shape, entry.dtype, Device::cpu});
  } catch (const Error&) {
  }
}

void check_entry(const Hdf5File& file, Entry& entry, Input& input) {
  const bool same = file.shape(entry.name) == entry.shape &&
                    file.dtype(entry.name) == entry.dtype &&
                    file.attribute(entry.name, "text") == entry.text;
  if (!same) std::abort();
  const std::vector<uint8_t> expected = entry.values;
  std::fill(entry.values.begin(), entry.values.end(), uint8_t{0xA5});
  file.read(entry.name, entry.tensor());
  if (entry.values != expected) std::abort();
  try_block(file, entry, input);
}

void round_trip(const std::string& path, Input& input) {
  std::vector<Entry> entries;
  std::vector<int64_t> places;
  {
    Hdf5File file = Hdf5File::create(path);
    for (int i = 0; i < 8 && !input.is_over(); ++i) {
      Entry entry = draw_entry(input);
      if (add(file, entry)) entries.push_back(std::move(entry));
    }
    for (const Entry& entry : entries)
      places.push_back(entry.by_position && !entry.values.empty() ? file.dataset_place(entry.name)
                                                                  : -1);
    file.publish();
  }
  for (size_t i = 0; i < entries.size(); ++i)
    if (places[i] >= 0)
      PositionalFile(path, PositionalFile::Access::write)
          .write(places[i], entries[i].values.data(), std::ssize(entries[i].values));
  const Hdf5File file = Hdf5File::open(path);
  if (file.datasets().size() != entries.size()) std::abort();
  for (Entry& entry : entries) check_entry(file, entry, input);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path =
      (fs::is_directory("/dev/shm") ? "/dev/shm" : fs::temp_directory_path().string()) +
      "/phalanx_fuzz_hdf5_" + std::to_string(::getpid());
  Input input(data, size);
  round_trip(path, input);
  fs::remove(path);
  return 0;
}
