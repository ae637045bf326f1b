// CRC-32C (Castagnoli), the checksum of TFRecord files. Twenty lines of our own because the records
// are a few dozen bytes: no library would be worth its dependency.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string_view>

namespace phalanx {

namespace detail {
constexpr std::array<uint32_t, 256> make_crc32c_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    // 0x82F63B78 is the polynomial 0x1EDC6F41 with its bits reversed (RFC 3720, appendix B.4).
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1U) != 0 ? 0x82F63B78U : 0U);
    table[byte] = value;
  }
  return table;
}
inline constexpr auto kCrc32cTable = make_crc32c_table();
}  // namespace detail

constexpr uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = ~0U;
  for (const char c : bytes)
    crc = detail::kCrc32cTable[(crc ^ static_cast<uint8_t>(c)) & 0xFFU] ^ (crc >> 8);
  return ~crc;
}

/// The form TFRecord stores, so that a checksum over data that holds checksums stays sound.
constexpr uint32_t masked_crc32c(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xA282EAD8U;
}

}  // namespace phalanx
