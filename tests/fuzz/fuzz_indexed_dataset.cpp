// libFuzzer target of the .idx reader: whatever the bytes, it accepts them or throws
// phalanx::Error, and what it accepts can be read without leaving the file.
#include <cstdint>
#include <cstring>
#include <span>

#include "data/indexed_dataset.h"
#include "kernels/base/error.h"

/// Every value the view hands out; all sequences lie in the .bin.
static void visit(const phalanx::IndexView& view, int64_t bin_bytes) {
  const int64_t item = phalanx::token_bytes(view.token_type());
  for (int64_t i = 0; i < view.num_sequences(); ++i)
    if (view.byte_offset(i) < 0 || view.byte_offset(i) + view.length(i) * item > bin_bytes)
      __builtin_trap();
  for (int64_t i = 0; i < view.num_documents(); ++i)
    if (view.document_begin(i) > view.document_begin(i + 1)) __builtin_trap();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The first eight bytes are the size of the .bin, the rest is the .idx.
  int64_t bin_bytes = 0;
  if (size < sizeof(bin_bytes)) return 0;
  std::memcpy(&bin_bytes, data, sizeof(bin_bytes));
  bin_bytes &= INT64_MAX;
  const auto index = std::as_bytes(std::span(data + sizeof(bin_bytes), size - sizeof(bin_bytes)));
  try {
    visit(phalanx::IndexView(index, bin_bytes, "fuzzed.idx"), bin_bytes);
  } catch (const phalanx::Error&) {
    return 0;
  }
  return 0;
}
