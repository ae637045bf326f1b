// What `phalanx checkpoint` prints, as text.
#pragma once

#include <string>
#include <vector>

#include "core/checkpoint/difference.h"
#include "core/checkpoint/listing.h"
#include "core/checkpoint/tensor_statistics.h"

namespace phalanx {

/// "1.23 GB".
std::string size_text(int64_t bytes);

/// A table of all checkpoints and leftovers; `any_damage` says whether a checkpoint is damaged at
/// first sight.
std::string list_text(const FoundCheckpoints& found, bool& any_damage);

/// Everything in a manifest that is one number or one line.
std::string scalars_text(const std::string& folder, const Manifest& manifest);
std::string statistics_text(const std::vector<TensorStatistics>& all);

/// "lr: 0.1 | 0.2" for every option that two config.ini texts set to different values; "-" stands
/// for an option that one of them lacks.
std::vector<std::string> option_differences(const std::string& first, const std::string& second);
/// How the two were written ("layout: tp 1 | tp 2"), which is no difference of what they hold.
std::vector<std::string> origin_differences(const Manifest& first, const Manifest& second);
std::string difference_text(const CheckpointDifference& difference,
                            const std::vector<std::string>& options,
                            const std::vector<std::string>& origins);

}  // namespace phalanx
