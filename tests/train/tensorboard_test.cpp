// Event files, read back by an independent parser; CRC-32C against published vectors.
#include "core/train/tensorboard_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>

#include "core/train/crc32c.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

TEST(Crc32c, PublishedVectors) {
  EXPECT_EQ(crc32c(""), 0U);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283U);
  // RFC 3720, appendix B.4.
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAU);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43U);
  std::string ascending;
  for (int i = 0; i < 32; ++i) ascending.push_back(static_cast<char>(i));
  EXPECT_EQ(crc32c(ascending), 0x46DD794EU);
}

/// Bit by bit, straight from the definition: shares nothing with the table.
uint32_t slow_masked_crc(const std::string& bytes) {
  uint32_t crc = 0xFFFFFFFFU;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1U) ? (crc >> 1) ^ 0x82F63B78U : crc >> 1;
  }
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8U;
}

template <class T>
T take(std::string& bytes) {
  T value;
  EXPECT_GE(bytes.size(), sizeof(T));
  std::memcpy(&value, bytes.data(), sizeof(T));
  bytes.erase(0, sizeof(T));
  return value;
}

uint64_t take_varint(std::string& bytes) {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = take<uint8_t>(bytes);
    value |= uint64_t{byte & 0x7FU} << shift;
    if (byte < 0x80) return value;
  }
}

struct Message {
  std::map<uint64_t, double> doubles;
  std::map<uint64_t, float> floats;
  std::map<uint64_t, uint64_t> integers;
  std::multimap<uint64_t, std::string> strings;
};

Message parse(std::string bytes) {
  Message message;
  while (!bytes.empty()) {
    const uint64_t key = take_varint(bytes);
    switch (key & 7U) {
      case 0:
        message.integers[key >> 3] = take_varint(bytes);
        break;
      case 1:
        message.doubles[key >> 3] = take<double>(bytes);
        break;
      case 2: {
        const uint64_t size = take_varint(bytes);
        message.strings.emplace(key >> 3, bytes.substr(0, size));
        bytes.erase(0, size);
        break;
      }
      case 5:
        message.floats[key >> 3] = take<float>(bytes);
        break;
      default:
        ADD_FAILURE() << "wire type " << (key & 7U);
        return message;
    }
  }
  return message;
}

std::vector<Message> read_events(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  content << file.rdbuf();
  std::string bytes = content.str();
  std::vector<Message> events;
  while (!bytes.empty()) {
    const std::string length_bytes = bytes.substr(0, 8);
    const auto length = take<uint64_t>(bytes);
    EXPECT_EQ(take<uint32_t>(bytes), slow_masked_crc(length_bytes));
    const std::string data = bytes.substr(0, length);
    bytes.erase(0, length);
    EXPECT_EQ(take<uint32_t>(bytes), slow_masked_crc(data));
    events.push_back(parse(data));
  }
  return events;
}

TEST(TensorBoardWriter, EventsReadBack) {
  const std::string folder = testing::TempDir() + "/phalanx_tensorboard_test";
  std::filesystem::remove_all(folder);
  TensorBoardWriter writer(folder);
  const std::array<Scalar, 2> scalars{{{"lm loss", 3.25}, {"grad-norm", -0.5}}};
  writer.write(300, scalars);
  const auto events = read_events(writer.path());
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[0].strings.find(3)->second, "brain.Event:2");
  EXPECT_GT(events[0].doubles.at(1), 1.7e9);
  EXPECT_EQ(events[1].integers.at(2), 300U);
  const Message summary = parse(events[1].strings.find(5)->second);
  ASSERT_EQ(summary.strings.count(1), 2U);
  std::map<std::string, float> values;
  for (const auto& [field, bytes] : summary.strings) {
    const Message value = parse(bytes);
    values[value.strings.find(1)->second] = value.floats.at(2);
  }
  EXPECT_THAT(values, testing::UnorderedElementsAre(testing::Pair("lm loss", 3.25F),
                                                    testing::Pair("grad-norm", -0.5F)));
}

TEST(TensorBoardWriter, AnUnwritableFolderIsNamed) {
  EXPECT_THROW(TensorBoardWriter("/proc/nowhere"), Error);
}

}  // namespace
}  // namespace phalanx
