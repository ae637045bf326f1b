// index.h5, manifest.json, COMMITTED, in this order.
#include "core/checkpoint/seal.h"

#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "core/checkpoint/index_file.h"
#include "data/file_io.h"

namespace phalanx {

uint64_t file_digest(const std::string& path) {
  constexpr int64_t kBufferBytes = int64_t{1} << 20;
  const PositionalFile file(path, PositionalFile::Access::read);
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       XXH3_freeState);
  check(state != nullptr, "no memory to sum ", path);
  XXH3_64bits_reset(state.get());
  std::vector<uint8_t> buffer(kBufferBytes);
  const int64_t total = file.bytes();
  for (int64_t done = 0; done < total; done += kBufferBytes) {
    const int64_t bytes = std::min(kBufferBytes, total - done);
    file.read(done, buffer.data(), bytes);
    XXH3_64bits_update(state.get(), buffer.data(), static_cast<size_t>(bytes));
  }
  return XXH3_64bits_digest(state.get());
}

void seal_checkpoint(const std::string& folder, Manifest& manifest) {
  const std::string index = folder + "/index.h5";
  write_index(index, manifest);
  manifest.index_bytes = file_bytes(index);
  manifest.index_digest = file_digest(index);
  const std::string text = manifest_json(manifest);
  write_file(folder + "/manifest.json", text);
  sync_folder(folder);
  write_file(folder + "/COMMITTED", committed_text(manifest.counters.step, text));
  sync_folder(folder);
}

}  // namespace phalanx
