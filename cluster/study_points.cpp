// Words to options, and the list of points.
#include "cluster/study_points.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "cluster/study_layouts.h"
#include "core/train/memory_options.h"
#include "core/train/pipeline_report.h"

namespace phalanx {
namespace {

using Words = std::vector<std::string>;

Words split(const std::string& text, char separator) {
  Words parts;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const size_t first = part.find_first_not_of(' ');
    if (first != std::string::npos)
      parts.push_back(part.substr(first, part.find_last_not_of(' ') + 1 - first));
    begin = end + 1;
  }
  return parts;
}

/// The whole of `text` as a number of at least 1; 0 if it is none.
int64_t positive(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? std::max<int64_t>(0, value) : 0;
}

constexpr std::pair<const char*, const char*> kSizes[] = {
    {"tp", "--tensor-model-parallel-size"},
    {"pp", "--pipeline-model-parallel-size"},
    {"cp", "--context-parallel-size"},
    {"ep", "--expert-model-parallel-size"},
    {"etp", "--expert-tensor-parallel-size"},
    {"vp", "--num-virtual-stages-per-pipeline-rank"},
    {"mb", "--micro-batch-size"}};
constexpr std::pair<const char*, const char*> kChoices[] = {
    {"zero1", "--data-parallel-sharding-strategy optim"},
    {"zero3", "--data-parallel-sharding-strategy optim_grads_params"},
    {"gpipe", "--pipeline-schedule gpipe"},
    {"1f1b", "--pipeline-schedule 1f1b"},
    {"interleaved", "--pipeline-schedule interleaved"},
    {"zero-bubble", "--pipeline-schedule zero-bubble"},
    {"recompute=none", "--recompute none"},
    {"recompute=attention", "--recompute attention"},
    {"recompute=layer", "--recompute layer"},
    {"sp", "--sequence-parallel"}};

Words word_arguments(const std::string& word) {
  for (const auto& [name, options] : kChoices)
    if (word == name) return split(options, ' ');
  const std::string name = word.substr(0, word.find_first_of("0123456789"));
  const int64_t size = positive(word.substr(name.size()));
  for (const auto& [known, option] : kSizes)
    if (name == known && size > 0) return {option, std::to_string(size)};
  std::string known;
  for (const auto& [size_name, option] : kSizes) known += fmt::format("{}N ", size_name);
  for (const auto& [choice, options] : kChoices) known += fmt::format("{} ", choice);
  throw UsageError(fmt::format("layouts: '{}' is no word of a layout; there are {}", word, known));
}

std::string point_name(int64_t nodes, const std::string& layout) {
  std::string name = fmt::format("nodes-{:03d}", nodes);
  if (!layout.empty()) name += "_" + layout;
  for (char& c : name)
    if (c == ' ' || c == '=') c = '-';
  return name;
}

class Expansion {
 public:
  Expansion(const StudyOptions& options, int64_t ranks_per_node, const Words& train_arguments,
            const StudyNeeds& needs)
      : options_(options), ranks_per_node_(ranks_per_node), needs_(needs) {
    nodes_ = parse_node_counts(options.nodes);
    check_usage(options.strong != options.weak,
                "say --strong (the same global batch at every node count) or --weak (it grows "
                "with the nodes)");
    check_usage(!options.study_dir.empty(),
                "study-dir is empty: name a folder for the study, e.g. --study-dir studies/first");
    check_usage(ranks_per_node >= 1, "ranks-per-node ", ranks_per_node, " must be at least 1");
    // In front, so that the command line wins over them, and they over files and environment,
    // which are about long runs.
    // The learning rate follows the begin of a long run's schedule, because a recipe's warm-up must
    // fit into it; no time depends on it.
    arguments_ = {"--train-iters",    std::to_string(kStudySteps),
                  "--lr-decay-iters", "1000000",
                  "--save-interval",  "0",
                  "--eval-interval",  "0"};
    arguments_.insert(arguments_.end(), train_arguments.begin(), train_arguments.end());
    Words complete = arguments_;
    complete.insert(complete.end(), {"--run-dir", options.study_dir});
    first_ = needs.configuration(complete);
    check_usage(first_.training.global_batch_size > 0,
                "a study needs --global-batch-size: that of every point (--strong), or of the "
                "first node count (--weak)");
    check_usage(first_.training.train_iters > kWarmupSteps, "train-iters ",
                first_.training.train_iters, " leaves nothing to measure: the first ", kWarmupSteps,
                " steps warm up; the nearest is ", kWarmupSteps + 1);
  }

  std::vector<StudyPoint> run() {
    for (const int64_t nodes : nodes_)
      if (options_.layouts == "auto")
        add_automatic(nodes);
      else
        add_given(nodes);
    std::string reasons;
    for (const StudyPoint& point : points_) {
      if (point.problems.empty()) return std::move(points_);
      for (const std::string& problem : point.problems)
        reasons += fmt::format("\n  {}: {}", point.name, problem);
    }
    throw UsageError("no point of the study can run:" + reasons);
  }

 private:
  void add_given(int64_t nodes) {
    if (options_.layouts == "none") {
      points_.push_back(make_point(nodes, ""));
      return;
    }
    const Words layouts = split(options_.layouts, ',');
    check_usage(!layouts.empty(), "layouts is empty; give auto, none, or words such as tp2 pp1");
    std::set<std::string> seen;
    for (const std::string& layout : layouts) {
      check_usage(seen.insert(layout).second, "layouts: '", layout,
                  "' is given twice; leave one out");
      points_.push_back(make_point(nodes, layout));
    }
  }

  /// The cheapest that can run. If none can, the first says why.
  void add_automatic(int64_t nodes) {
    std::vector<std::pair<double, std::string>> ranked;
    for (const std::string& layout : candidate_layouts(first_.model, nodes, ranks_per_node_)) {
      StudyPoint point = bare_point(nodes, layout);
      if (!point.problems.empty()) continue;
      const RunConfig config = needs_.configuration(point.arguments);
      if (validate(config, point.ranks).empty())
        ranked.emplace_back(layout_cost(with_vocabulary(config), nodes, ranks_per_node_), layout);
    }
    std::stable_sort(ranked.begin(), ranked.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    int64_t found = 0;
    for (const auto& [cost, layout] : ranked) {
      if (!fits(bare_point(nodes, layout))) continue;
      StudyPoint point = make_point(nodes, layout);
      if (!point.problems.empty()) continue;
      points_.push_back(std::move(point));
      if (++found == kMostLayouts) return;
    }
    if (found > 0) return;
    points_.push_back(make_point(nodes, ranked.empty() ? "tp1 pp1" : ranked.front().second));
  }

  /// Asked beforehand, because the whole check looks for options that do when it finds too little.
  bool fits(const StudyPoint& point) {
    if (needs_.bytes_per_rank == 0) return true;
    const RunConfig config = with_vocabulary(needs_.configuration(point.arguments));
    const MemoryNeeds needs = measure_memory(config, point.ranks, Device::cpu).first;
    return needs.on_device() <= needs_.bytes_per_rank;
  }

  /// Without the checks that need a configuration.
  StudyPoint bare_point(int64_t nodes, const std::string& layout) const {
    StudyPoint point{.name = point_name(nodes, layout),
                     .nodes = nodes,
                     .ranks = nodes * ranks_per_node_,
                     .layout = layout,
                     .global_batch_size = first_.training.global_batch_size,
                     .train_iters = first_.training.train_iters,
                     .arguments = arguments_};
    if (options_.weak) {
      const int64_t grown = point.global_batch_size * nodes;
      point.global_batch_size = grown / nodes_.front();
      if (grown % nodes_.front() != 0)
        point.problems.push_back(fmt::format(
            "weak: global-batch-size {} of {} nodes does not grow to a whole number on {} nodes; "
            "try {}",
            first_.training.global_batch_size, nodes_.front(), nodes,
            first_.training.global_batch_size * nodes_.front()));
    }
    const Words more = layout_arguments(layout);
    point.arguments.insert(point.arguments.end(), more.begin(), more.end());
    point.arguments.insert(point.arguments.end(),
                           {"--global-batch-size", std::to_string(point.global_batch_size),
                            "--run-dir", options_.study_dir + "/" + point.name});
    return point;
  }

  StudyPoint make_point(int64_t nodes, const std::string& layout) {
    StudyPoint point = bare_point(nodes, layout);
    if (!point.problems.empty()) return point;
    RunConfig config = needs_.configuration(point.arguments);
    point.problems = validate(config, point.ranks);
    if (point.problems.empty()) point.problems = needs_.problems(point, config);
    if (!point.problems.empty()) return point;
    config = with_vocabulary(config);
    const DeviceMesh mesh(config.parallel, point.ranks);
    point.forecast = {
        .memory_bytes = measure_memory(config, point.ranks, Device::cpu).first.total(),
        .bubble = predicted_bubble_fraction({.model = config.model,
                                             .parallel = config.parallel,
                                             .seq_length = config.data.seq_length,
                                             .num_micro_batches = num_micro_batches(config, mesh)}),
        .bytes = predict_step_bytes(config, point.ranks)};
    return point;
  }

  RunConfig with_vocabulary(RunConfig config) {
    if (config.model.vocab_size > 0) return config;
    if (vocab_size_ == 0) vocab_size_ = make_tokenizer(config.tokenizer)->vocab_size();
    config.model.vocab_size = vocab_size_;
    return config;
  }

  const StudyOptions& options_;
  int64_t ranks_per_node_;
  const StudyNeeds& needs_;
  std::vector<int64_t> nodes_;
  Words arguments_;  // of every point
  RunConfig first_;
  int64_t vocab_size_ = 0;  // of the tokenizer, once it was asked
  std::vector<StudyPoint> points_;
};

}  // namespace

std::vector<int64_t> parse_node_counts(const std::string& text) {
  std::vector<int64_t> counts;
  for (const std::string& word : split(text, ',')) {
    counts.push_back(positive(word));
    check_usage(counts.back() > 0, "nodes: '", word, "' is no number of nodes; try 1,2,4");
  }
  check_usage(!counts.empty(), "nodes is empty; try 1,2,4");
  std::sort(counts.begin(), counts.end());
  const auto twice = std::adjacent_find(counts.begin(), counts.end());
  check_usage(twice == counts.end(), "nodes: ", twice == counts.end() ? 0 : *twice,
              " is given twice; leave one out");
  return counts;
}

std::vector<std::string> layout_arguments(const std::string& layout) {
  Words arguments;
  for (const std::string& word : split(layout, ' ')) {
    const Words more = word_arguments(word);
    arguments.insert(arguments.end(), more.begin(), more.end());
  }
  return arguments;
}

std::vector<StudyPoint> study_points(const StudyOptions& options, int64_t ranks_per_node,
                                     const std::vector<std::string>& train_arguments,
                                     const StudyNeeds& needs) {
  return Expansion(options, ranks_per_node, train_arguments, needs).run();
}

}  // namespace phalanx
