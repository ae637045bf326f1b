// PartialGradients: sums gradients over ranks outside the group that reduces their bucket.
#pragma once

#include "parallel/bucket.h"
#include "parallel/gradient_sum.h"

namespace phalanx {

/// Over tp: norms under sequence parallel, key-value heads that several ranks hold. Over the
/// pipeline's ends: tied embeddings.
class PartialGradients {
 public:
  PartialGradients(ParameterStore& store, Backend& backend, ProcessGroups& groups)
      : store_(store), groups_(groups), gradient_sum_(backend) {}

  /// Collective over tp, and over the stages that share the bucket.
  void sum(const Bucket& bucket);

 private:
  ParameterStore& store_;
  ProcessGroups& groups_;
  GradientSum gradient_sum_;
};

}  // namespace phalanx
