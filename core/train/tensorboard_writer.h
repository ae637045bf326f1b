// TensorBoard event files, written without protobuf: TFRecord frames around hand-encoded Event
// messages that hold scalars only.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/train/record_file.h"

namespace phalanx {

/// One scalar of an event.
struct Scalar {
  std::string_view tag;  // "train/lm loss"
  double value;
};

/// Field numbers of tensorflow/core/util/event.proto and summary.proto:
/// Event {1 double wall_time, 2 int64 step, 3 string file_version, 5 Summary}, Summary {1 repeated
/// Value}, Value {1 string tag, 2 float simple_value}.
std::string encode_version_event(double wall_time);
std::string encode_scalar_event(double wall_time, int64_t step, std::span<const Scalar> scalars);
/// Little-endian u64 length, masked CRC-32C of the length, data, masked CRC-32C of the data.
std::string frame_record(std::string_view data);

/// Owns one event file, `events.out.tfevents.<seconds>.<host>.<pid>` in `folder`. One thread.
class TensorBoardWriter {
 public:
  /// Makes the folder if it is missing. Throws with the path if the file cannot be written.
  explicit TensorBoardWriter(const std::string& folder);
  /// Appends one event and hands it to the system, so that a running TensorBoard shows it. False,
  /// and the event is lost, if the disk has no room for it.
  bool write(int64_t step, std::span<const Scalar> scalars);
  const std::string& path() const { return file_->path(); }

 private:
  std::optional<RecordFile> file_;  // always there once constructed
};

}  // namespace phalanx
