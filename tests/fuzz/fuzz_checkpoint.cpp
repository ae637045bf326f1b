// Fuzz target: patches to the files of a small checkpoint. Whatever they are, `verify` reports
// damage if any byte differs and none if all are as they were, the reader hands out no wrong
// value, and neither crashes; also if the manifest is fuzzed and COMMITTED made to fit it.
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <vector>

#include "core/checkpoint/checkpoint_reader.h"
#include "core/checkpoint/verify.h"
#include "tests/checkpoint/checkpoint_fixture.h"

namespace {

using namespace phalanx;
namespace fs = std::filesystem;
using Bytes = std::vector<uint8_t>;

/// Bytes of the input, zeros behind its end.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool is_over() const { return at_ >= size_; }
  uint64_t number(size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; ++i)
      value |= uint64_t{at_ < size_ ? data_[at_++] : uint8_t{0}} << (8 * i);
    return value;
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

Bytes read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_bytes(const std::string& path, const Bytes& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

/// All values of a checkpoint; nothing if the reader refuses.
std::vector<Bytes> read_values(const std::string& folder) {
  constexpr int64_t kMost = int64_t{1} << 20;  // a fuzzed manifest may tell of any size
  std::vector<Bytes> values;
  try {
    CheckpointReader reader(folder);
    if (reader.manifest().data_bytes() > kMost) return {};
    for (const SavedTensor& tensor : reader.manifest().tensors)
      for (int part = 0; part < kNumParts; ++part) {
        values.emplace_back(
            static_cast<size_t>(tensor.shape.numel() * dtype_bytes(reader.manifest().dtype)));
        reader.read(tensor, part, whole_range(tensor), values.back().data());
      }
    reader.check_what_was_read();
  } catch (const Error&) {
    return {};
  }
  return values;
}

/// The checkpoint as it was, in a folder of this process.
struct Golden {
  Golden() {
    const bool memory = fs::is_directory("/dev/shm");
    root = (memory ? fs::path("/dev/shm") : fs::temp_directory_path()) /
           ("phalanx_fuzz_" + std::to_string(::getpid()));
    folder = root / "iter_0000100";
    write_fixture(folder,
                  {.tensors = {{"head.weight", {6, 16}}, {"norm.weight", {8}}}, .row_cuts = 2});
    for (const auto& entry : fs::directory_iterator(folder))
      files.emplace(entry.path().filename().string(), read_bytes(entry.path()));
    values = read_values(folder);
  }
  ~Golden() { fs::remove_all(root); }
  fs::path root;
  std::string folder;
  std::map<std::string, Bytes> files;
  std::vector<Bytes> values;
};

/// File, kind, position and bytes of one patch.
void patch(Input& input, std::map<std::string, Bytes>& files) {
  auto place = files.begin();
  std::advance(place, input.number(1) % files.size());
  Bytes& bytes = place->second;
  const uint64_t kind = input.number(1) % 5;
  const auto position = static_cast<size_t>(input.number(2) % (bytes.size() + 1));
  const auto count = static_cast<size_t>(input.number(1));
  const auto end = std::min(bytes.size(), position + count);
  if (kind == 0) bytes.resize(position);
  if (kind == 1) bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(position), count, 0x20);
  if (kind == 2)
    std::fill(bytes.begin() + static_cast<ptrdiff_t>(position),
              bytes.begin() + static_cast<ptrdiff_t>(end), 0);
  if (kind == 3)
    bytes.erase(bytes.begin() + static_cast<ptrdiff_t>(position),
                bytes.begin() + static_cast<ptrdiff_t>(end));
  if (kind == 4)
    for (size_t i = position; i < std::min(end, position + 16); ++i)
      bytes[i] = static_cast<uint8_t>(input.number(1));
}

void reseal(std::map<std::string, Bytes>& files) {
  const Bytes& manifest = files.at("manifest.json");
  const std::string text = committed_text(100, {manifest.begin(), manifest.end()});
  files.at("COMMITTED").assign(text.begin(), text.end());
}

void look(const Golden& golden, bool resealed, bool same) {
  const bool intact = verify_checkpoint(golden.folder, {}).intact();
  const std::vector<Bytes> values = read_values(golden.folder);
  if (resealed) return;  // a manifest of another content is another checkpoint
  if (intact != same) std::abort();
  // The reader does not look at index.h5 and frames, but no wrong value passes it.
  if (!values.empty() && values != golden.values) std::abort();
  if (same && values.empty()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Golden golden;
  Input input(data, size);
  const bool wants_seal = input.number(1) % 2 == 1;
  std::map<std::string, Bytes> files = golden.files;
  for (int i = 0; i < 32 && !input.is_over(); ++i) patch(input, files);
  const bool resealed = wants_seal && files.at("manifest.json") != golden.files.at("manifest.json");
  if (resealed) reseal(files);
  for (const auto& [name, bytes] : files)
    if (bytes != golden.files.at(name)) write_bytes(golden.folder + "/" + name, bytes);
  look(golden, resealed, files == golden.files);
  for (const auto& [name, bytes] : golden.files)
    if (bytes != files.at(name)) write_bytes(golden.folder + "/" + name, bytes);
  return 0;
}
