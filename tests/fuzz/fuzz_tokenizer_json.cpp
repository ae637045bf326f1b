// Fuzz target: any bytes as a tokenizer.json either make a working tokenizer or throw Error.
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "data/tokenizer_json.h"
#include "kernels/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kLargest = 64 * 1024;  // a small tokenizer.json has 9 KB
  if (size > kLargest) return 0;
  try {
    const auto tokenizer = phalanx::parse_tokenizer_json(
        std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    std::vector<int32_t> ids;
    tokenizer->encode("It's  e\xCC\x81 12\xFF\n", ids);
    tokenizer->decode(ids);
  } catch (const phalanx::Error&) {  // the promised way to refuse
  }
  return 0;
}
