// Small JSON files that tell by themselves whether they are what was written.
#pragma once

#include <string>

namespace phalanx {

/// `json`, the text of an object that ends with "\n}\n", with one more field at its end:
/// "checksum", XXH3 of `json`.
std::string with_checksum(const std::string& json);

/// Whether `text` is, byte for byte, what `with_checksum` made. Any text is safe.
bool has_its_checksum(const std::string& text);

}  // namespace phalanx
