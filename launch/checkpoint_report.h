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

/// "seed: 1 | 2" for every option of model, data and numbers that their runs had set differently;
/// "-" stands for an option that one of them lacks.
std::vector<std::string> option_differences(const Manifest& first, const Manifest& second);
/// The same for options of where, how fast and how long they ran, and for how they were written:
/// no differences of what they hold.
std::vector<std::string> origin_differences(const Manifest& first, const Manifest& second);
std::string difference_text(const CheckpointDifference& difference,
                            const std::vector<std::string>& options,
                            const std::vector<std::string>& origins);

}  // namespace phalanx
