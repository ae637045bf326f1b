// Layers to stages: two passes of dynamic programming over (stages, layers) prefixes.
#include "parallel/pipeline_layout.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <numeric>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Compared first by stages without layers, then by the sum of squared stage costs.
struct Unevenness {
  double num_empty = kInfinity;
  double squares = kInfinity;
  auto operator<=>(const Unevenness&) const = default;
};

class LayerBalance {
 public:
  LayerBalance(std::span<const double> costs, double first_extra, double last_extra,
               int64_t num_stages)
      : num_layers_(static_cast<int64_t>(costs.size())),
        num_stages_(num_stages),
        first_extra_(first_extra),
        last_extra_(last_extra),
        sums_(costs.size() + 1) {
    std::partial_sum(costs.begin(), costs.end(), sums_.begin() + 1);
  }

  std::vector<LayerRange> cut() const {
    const double bound = least_maximum();
    // best[i]: of the stages so far over the first i layers; begins[stage][i]: of the last stage.
    std::vector<Unevenness> best(static_cast<size_t>(num_layers_ + 1));
    best[0] = {0, 0};
    std::vector<std::vector<int64_t>> begins;
    for (int64_t stage = 0; stage < num_stages_; ++stage) {
      std::vector<int64_t> begin_of(best.size(), 0);
      best = add_stage(stage, best, bound, begin_of);
      begins.push_back(std::move(begin_of));
    }
    std::vector<LayerRange> ranges(static_cast<size_t>(num_stages_));
    int64_t end = num_layers_;
    for (auto stage = ranges.size(); stage-- > 0;) {
      const int64_t begin = begins[stage][static_cast<size_t>(end)];
      ranges[stage] = {begin, end};
      end = begin;
    }
    return ranges;
  }

 private:
  double cost(int64_t stage, int64_t begin, int64_t end) const {
    return sums_[static_cast<size_t>(end)] - sums_[static_cast<size_t>(begin)] +
           (stage == 0 ? first_extra_ : 0) + (stage == num_stages_ - 1 ? last_extra_ : 0);
  }

  /// Cost of the dearest stage in the best partition.
  double least_maximum() const {
    std::vector<double> best(static_cast<size_t>(num_layers_ + 1), kInfinity);
    best[0] = 0;
    for (int64_t stage = 0; stage < num_stages_; ++stage)
      for (int64_t end = num_layers_; end >= 0; --end) {  // downwards: reads smaller ends only
        double least = kInfinity;
        for (int64_t begin = 0; begin <= end; ++begin)
          least =
              std::min(least, std::max(best[static_cast<size_t>(begin)], cost(stage, begin, end)));
        best[static_cast<size_t>(end)] = least;
      }
    return best.back();
  }

  /// `best` with one stage more. Of equal cuts the one that gives later stages more layers wins,
  /// because the first ranks of a pipeline hold the most micro-batches.
  std::vector<Unevenness> add_stage(int64_t stage, const std::vector<Unevenness>& best,
                                    double bound, std::vector<int64_t>& begin_of) const {
    std::vector<Unevenness> longer(best.size());
    for (int64_t end = 0; end <= num_layers_; ++end)
      for (int64_t begin = 0; begin <= end; ++begin) {
        const double c = cost(stage, begin, end);
        const Unevenness& before = best[static_cast<size_t>(begin)];
        const Unevenness total{before.num_empty + (begin == end ? 1 : 0), before.squares + c * c};
        if (c > bound || !(total < longer[static_cast<size_t>(end)])) continue;
        longer[static_cast<size_t>(end)] = total;
        begin_of[static_cast<size_t>(end)] = begin;
      }
    return longer;
  }

  int64_t num_layers_;
  int64_t num_stages_;
  double first_extra_;
  double last_extra_;
  std::vector<double> sums_;  // of the first i layers
};

constexpr int64_t kMostLayers = 1'000'000;

int64_t parse_count(std::string_view word, std::string_view text) {
  int64_t count = -1;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), count);
  check_usage(error == std::errc() && end == word.data() + word.size() && 0 <= count &&
                  count <= kMostLayers,
              "pipeline-layout ", text, ": '", word,
              "' is not a number of layers; write numbers with commas, such as 3,4,4,3");
  return count;
}

std::vector<int64_t> parse_counts(std::string_view text) {
  std::vector<int64_t> counts;
  for (std::string_view rest = text;;) {
    const size_t comma = rest.find(',');
    counts.push_back(parse_count(rest.substr(0, comma), text));
    if (comma == std::string_view::npos) return counts;
    rest.remove_prefix(comma + 1);
  }
}

/// The layout nearest to `counts` that has the right sum: layers go to the smallest stages, or
/// leave the largest.
std::string with_sum(std::vector<int64_t> counts, int64_t num_layers) {
  int64_t missing = num_layers - std::accumulate(counts.begin(), counts.end(), int64_t{0});
  for (; missing > 0; --missing) ++*std::min_element(counts.begin(), counts.end());
  for (; missing < 0; ++missing) --*std::max_element(counts.begin(), counts.end());
  return fmt::format("{}", fmt::join(counts, ","));
}

}  // namespace

std::vector<LayerRange> balance_layers(std::span<const double> layer_costs, double first_extra,
                                       double last_extra, int64_t num_stages) {
  check(num_stages >= 1, "layers cannot be shared among ", num_stages, " pipeline stages");
  check(first_extra >= 0 && last_extra >= 0, "negative costs of a pipeline's ends: ", first_extra,
        " and ", last_extra);
  for (const double cost : layer_costs) check(cost >= 0, "negative cost of a layer: ", cost);
  return LayerBalance(layer_costs, first_extra, last_extra, num_stages).cut();
}

std::vector<LayerRange> parse_pipeline_layout(std::string_view text, int64_t num_layers,
                                              int64_t num_stages) {
  const std::vector<int64_t> counts = parse_counts(text);
  check_usage(static_cast<int64_t>(counts.size()) == num_stages, "pipeline-layout ", text, " has ",
              counts.size(), " stages for ", num_stages,
              " (pipeline ranks times virtual stages); try ",
              with_sum(std::vector<int64_t>(static_cast<size_t>(num_stages), 0), num_layers));
  const int64_t sum = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  check_usage(sum == num_layers, "pipeline-layout ", text, " has ", sum, " layers for ", num_layers,
              "; try ", with_sum(counts, num_layers));
  std::vector<LayerRange> ranges;
  for (const int64_t count : counts) {
    const int64_t begin = ranges.empty() ? 0 : ranges.back().end;
    ranges.push_back({begin, begin + count});
  }
  return ranges;
}

}  // namespace phalanx
