// TFRecord framing and protobuf wire encoding of scalar events.
#include "core/train/tensorboard_writer.h"

#include <fmt/format.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <filesystem>

#include "core/train/crc32c.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

static_assert(std::endian::native == std::endian::little, "records are stored little-endian");

enum class WireType : uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

template <class T>
void append_raw(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

void append_key(std::string& out, int field, WireType type) {
  append_varint(out, static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(type));
}

void append_bytes(std::string& out, int field, std::string_view bytes) {
  append_key(out, field, WireType::bytes);
  append_varint(out, bytes.size());
  out.append(bytes);
}

double wall_time_now() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

std::string host_name() {
  char name[256] = "localhost";
  gethostname(name, sizeof(name) - 1);
  return name;
}

}  // namespace

std::string encode_version_event(double wall_time) {
  std::string event;
  append_key(event, 1, WireType::fixed64);
  append_raw(event, wall_time);
  append_bytes(event, 3, "brain.Event:2");
  return event;
}

std::string encode_scalar_event(double wall_time, int64_t step, std::span<const Scalar> scalars) {
  std::string summary;
  for (const Scalar& scalar : scalars) {
    std::string value;
    append_bytes(value, 1, scalar.tag);
    append_key(value, 2, WireType::fixed32);
    append_raw(value, static_cast<float>(scalar.value));
    append_bytes(summary, 1, value);
  }
  std::string event;
  append_key(event, 1, WireType::fixed64);
  append_raw(event, wall_time);
  append_key(event, 2, WireType::varint);
  append_varint(event, static_cast<uint64_t>(step));
  append_bytes(event, 5, summary);
  return event;
}

std::string frame_record(std::string_view data) {
  std::string record;
  append_raw(record, static_cast<uint64_t>(data.size()));
  append_raw(record, masked_crc32c(record));
  record.append(data);
  append_raw(record, masked_crc32c(data));
  return record;
}

TensorBoardWriter::TensorBoardWriter(const std::string& folder) {
  std::error_code ignored;  // the open below fails with the better message
  std::filesystem::create_directories(folder, ignored);
  const double now = wall_time_now();
  file_.emplace(fmt::format("{}/events.out.tfevents.{:010d}.{}.{}", folder,
                            static_cast<int64_t>(now), host_name(), getpid()));
  check(file_->append(frame_record(encode_version_event(now))), "cannot write to ", path(),
        "; is the disk full? Choose another folder with --tensorboard-dir");
}

bool TensorBoardWriter::write(int64_t step, std::span<const Scalar> scalars) {
  return file_->append(frame_record(encode_scalar_event(wall_time_now(), step, scalars)));
}

}  // namespace phalanx
