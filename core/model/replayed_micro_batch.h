// ReplayedMicroBatch: forward and backward of a micro-batch, handed in once and replayed for the
// following ones.
#pragma once

#include <functional>
#include <memory>

#include "kernels/backend.h"

namespace phalanx {

/// What a recording holds beside its ops: numbers that became their arguments, and which inputs
/// there are. With others it is made again.
struct ReplayKey {
  int64_t loss_tokens = 0;
  bool position_ids = false;
  bool document_start = false;
  bool operator==(const ReplayKey&) const = default;
};

/// The first micro-batch of all runs as it is handed in, because ops take memory and choose their
/// algorithms when they run first. One thread.
class ReplayedMicroBatch {
 public:
  explicit ReplayedMicroBatch(Backend& backend) : ops_(backend) {}

  /// `hand_in` hands in ops on the same memory whenever it is called with the same key.
  void forward(const ReplayKey& key, const std::function<void()>& hand_in);
  /// Of the micro-batch whose forward was the last.
  void backward(const std::function<void()>& hand_in);

 private:
  void run(std::unique_ptr<RecordedOps>& recorded, const std::function<void()>& hand_in);

  Backend& ops_;
  enum class Progress : uint8_t { unused, first, recorded } progress_ = Progress::unused;
  ReplayKey key_;
  std::unique_ptr<RecordedOps> forward_, backward_;
};

}  // namespace phalanx
