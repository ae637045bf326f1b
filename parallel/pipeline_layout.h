// Which layers each virtual stage of a pipeline holds: by cost, or as the user wrote it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace phalanx {

/// Layers [begin, end).
struct LayerRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const LayerRange&) const = default;
};

/// Cuts the layers into `num_stages` (pipeline ranks times chunks) neighbouring ranges so that the
/// dearest stage is as cheap as possible; then with as few empty stages, then as evenly (least sum
/// of squares) as that allows. `first_extra` is what the first stage has besides its layers (the
/// embedding), `last_extra` the last (the head and the loss). Costs in any unit, none negative.
std::vector<LayerRange> balance_layers(std::span<const double> layer_costs, double first_extra,
                                       double last_extra, int64_t num_stages);

/// "3,4,4,3": the number of layers of each virtual stage. UsageError that names the value and the
/// fix unless there are `num_stages` of them that sum to `num_layers`.
std::vector<LayerRange> parse_pipeline_layout(std::string_view text, int64_t num_layers,
                                              int64_t num_stages);

}  // namespace phalanx
