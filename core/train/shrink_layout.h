// A run's configuration made small: what `phalanx train --verify-layout` trains two steps of.
#pragma once

#include "core/config.h"
#include "core/train/layout_check.h"

namespace phalanx {

/// `config` (valid on `world_size` ranks) with every size as small as its layout allows. Kept are
/// the layout, the norm scheme, PHD's mode and K, the ratio of heads to key-value heads and of
/// those to tensor ranks, sparse patterns, experts per token, the schedule and recompute; of an
/// uneven --pipeline-layout, which stages have more layers than others. Valid on `world_size`
/// ranks.
RunConfig shrink_config(const RunConfig& config, int64_t world_size);

/// The shrunken run as a layout check in fp32. Its optimizer is AdamW with an epsilon above the
/// gradients, because lr g / (|g| + eps) with a tiny eps makes a sign of every rounding error.
LayoutCase layout_case(const RunConfig& shrunken);

}  // namespace phalanx
