// When to record and when to replay.
#include "core/model/replayed_micro_batch.h"

namespace phalanx {

void ReplayedMicroBatch::forward(const ReplayKey& key, const std::function<void()>& hand_in) {
  progress_ = progress_ == Progress::unused ? Progress::first : Progress::recorded;
  if (!(key == key_)) {
    forward_.reset();
    backward_.reset();
    key_ = key;
  }
  run(forward_, hand_in);
}

void ReplayedMicroBatch::backward(const std::function<void()>& hand_in) {
  run(backward_, hand_in);
}

void ReplayedMicroBatch::run(std::unique_ptr<RecordedOps>& recorded,
                             const std::function<void()>& hand_in) {
  if (progress_ == Progress::first) return hand_in();
  if (!recorded) recorded = ops_.record(hand_in);
  recorded->replay();
}

}  // namespace phalanx
