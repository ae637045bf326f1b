// Measures processors, memory, links and the run folder.
#include "core/train/preflight.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <limits>

#include "core/checkpoint/agreement.h"
#include "data/file_io.h"
#include "kernels/base/error.h"
#include "kernels/base/flight_recorder.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kCopyBytes = int64_t{32} << 20;  // more than a core's share of the caches
constexpr double kCopySeconds = 0.2;
constexpr int64_t kMessageWords = (int64_t{4} << 20) / 8;
constexpr int kShortMessages = 8;
constexpr int kLongMessages = 2;
constexpr double kLinkSeconds = 1;
constexpr int64_t kFileWords = (int64_t{16} << 20) / 8;
constexpr int64_t kPieceWords = (int64_t{1} << 20) / 8;
constexpr double kFileSeconds = 1;
constexpr double kGiga = 1e9;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a different word for every number.
uint64_t mixed(uint64_t number) {
  number += 0x9E3779B97F4A7C15U;
  number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9U;
  number = (number ^ (number >> 27)) * 0x94D049BB133111EBU;
  return number ^ (number >> 31);
}

/// Bytes per second of copies within the device's memory, the best of some.
double copy_rate(Backend& backend, int64_t room) {
  const int64_t bytes = std::min(kCopyBytes, room / 2) / 8 * 8;
  if (bytes == 0) return 0;
  const auto from_block = backend.allocate(bytes);
  const auto to_block = backend.allocate(bytes);
  const Shape shape{bytes / 4};
  const Tensor from{from_block.get(), shape, DType::f32, backend.device()};
  const Tensor to{to_block.get(), shape, DType::f32, backend.device()};
  double best = std::numeric_limits<double>::infinity();
  const auto begin = Clock::now();
  for (int copies = 0; copies < 3 || seconds_since(begin) < kCopySeconds; ++copies) {
    const auto copy_begin = Clock::now();
    backend.copy(to, from);
    backend.synchronize();
    best = std::min(best, seconds_since(copy_begin));
  }
  return static_cast<double>(bytes) / best;
}

/// Messages of one node's first rank to those of others.
class LinkTest {
 public:
  LinkTest(ProcessGroup& world, uint64_t own) : world_(world), own_(own) {
    fill_pattern(sent_, own);
  }

  /// Both ends call it. The result is the same link seen from here.
  LinkMeasure measure(int peer_rank, int peer_node) {
    std::ranges::fill(received_, 0);
    swap_words(peer_rank, 1);  // both are here now, and connected
    const double shortest = best_of(kShortMessages, peer_rank, 1);
    swap_words(peer_rank, kMessageWords);
    const double longest = best_of(kLongMessages, peer_rank, kMessageWords);
    const int64_t wrong = first_wrong_byte(received_, static_cast<uint64_t>(peer_node));
    if (wrong >= 0 && wrong_node_ < 0) {
      wrong_node_ = peer_node;
      wrong_byte_ = wrong;
    }
    return {.a = static_cast<int>(own_),
            .b = peer_node,
            .gbps = 8.0 * kMessageWords / longest / kGiga,
            .microseconds = shortest * 1e6};
  }
  int wrong_node() const { return wrong_node_; }  // whose message was first received wrong; or -1
  int64_t wrong_byte() const { return wrong_byte_; }

 private:
  void swap_words(int peer, int64_t words) {
    const Exchange message{.peer = peer,
                           .send = cpu_tensor(words_of(sent_), {words}),
                           .receive = cpu_tensor(words_of(received_), {words})};
    world_.exchange({&message, 1});
  }
  static int64_t* words_of(std::vector<uint64_t>& words) {
    return reinterpret_cast<int64_t*>(words.data());
  }
  double best_of(int count, int peer, int64_t words) {
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < count; ++i) {
      const auto begin = Clock::now();
      swap_words(peer, words);
      best = std::min(best, seconds_since(begin));
    }
    return best;
  }

  ProcessGroup& world_;
  uint64_t own_;
  std::vector<uint64_t> sent_ = std::vector<uint64_t>(kMessageWords);
  std::vector<uint64_t> received_ = std::vector<uint64_t>(kMessageWords);
  int wrong_node_ = -1;
  int64_t wrong_byte_ = -1;
};

/// One rank's part of the test.
class Preflight {
 public:
  Preflight(Backend& backend, ProcessGroup& world, const RankPlaces& places,
            const PreflightPlan& plan)
      : backend_(backend), world_(world), places_(places), plan_(plan) {
    for (int rank = world.size() - 1; rank >= 0; --rank) {
      first_ranks_.resize(places.nodes.size());
      first_ranks_[static_cast<size_t>(places.node[static_cast<size_t>(rank)])] = rank;
    }
  }

  PreflightReport run() {
    for (const std::string& name : places_.nodes) report_.nodes.push_back({.node = name});
    measure_ranks();
    measure_links();
    measure_files();
    return report_;
  }

 private:
  int node() const { return places_.node[static_cast<size_t>(world_.rank())]; }
  bool is_first_of_node() const {
    return first_ranks_[static_cast<size_t>(node())] == world_.rank();
  }
  NodeMeasure& measure_of(size_t rank) {
    return report_.nodes[static_cast<size_t>(places_.node[rank])];
  }

  /// `numbers` of every rank, in rank order; all have the same count.
  std::vector<double> gather(const std::vector<double>& numbers) {
    const int64_t count = std::ssize(numbers);
    std::vector<double> all(numbers.size() * static_cast<size_t>(world_.size()));
    world_.all_gather(cpu_tensor(all.data(), {count * world_.size()}),
                      cpu_tensor(numbers.data(), {count}));
    return all;
  }

  void agree(const std::string& problem) {
    if (world_.all_reduce(int64_t{problem.empty() ? 0 : 1}, ReduceOp::max) == 0) return;
    std::string text = "preflight:";
    for (const std::string& found : gather_texts(world_, problem))
      if (!found.empty()) text += " " + found + ";";
    text.back() = '.';
    throw Error(text + " Leave such a node out of the job; --preflight off does not look");
  }

  void measure_ranks() {
    world_.barrier();  // all copy at the same time, as they compute
    const double copies = copy_rate(backend_, plan_.room);
    const std::vector<double> all = gather({plan_.peak_flops / kGiga, copies / kGiga});
    for (size_t i = 0; i < all.size(); i += 2) {
      NodeMeasure& node = measure_of(i / 2);
      if (node.gflops == 0 || all[i] < node.gflops) {
        node.gflops = all[i];
        node.slowest_rank = static_cast<int>(i / 2);
      }
      if (node.copy_gbps == 0 || all[i + 1] < node.copy_gbps) node.copy_gbps = all[i + 1];
    }
  }

  void measure_links() {
    std::vector<LinkMeasure> own;  // those that begin here
    LinkTest test(world_, static_cast<uint64_t>(node()));
    const auto begin = Clock::now();
    int distance = 0;
    for (const LinkRound& round : link_rounds(places_.num_nodes())) {
      // All ranks must agree, and a distance is tested as a whole.
      if (round.distance != distance && distance > 0 &&
          world_.all_reduce(seconds_since(begin), ReduceOp::max) > kLinkSeconds)
        break;
      distance = round.distance;
      if (!is_first_of_node()) continue;
      for (const auto& [a, b] : round.pairs) {
        if (a != node() && b != node()) continue;
        const int peer = a == node() ? b : a;
        const LinkMeasure link = test.measure(first_ranks_[static_cast<size_t>(peer)], peer);
        if (a == node()) own.push_back(link);
      }
    }
    agree(test.wrong_node() < 0
              ? ""
              : fmt::format("a message from {} to {} arrived with a wrong byte at {}",
                            places_.nodes[static_cast<size_t>(test.wrong_node())],
                            places_.nodes[static_cast<size_t>(node())], test.wrong_byte()));
    gather_links(own);
  }

  void gather_links(const std::vector<LinkMeasure>& own) {
    constexpr size_t kNumbers = 4;
    std::vector<int64_t> counts(static_cast<size_t>(world_.size()));
    const int64_t count = std::ssize(own) * int64_t{kNumbers};
    world_.all_gather(cpu_tensor(counts.data(), {world_.size()}), cpu_tensor(&count, {1}));
    std::vector<double> all;
    for (int rank = 0; rank < world_.size(); ++rank) {
      if (rank != world_.rank()) {
        all.resize(all.size() + static_cast<size_t>(counts[static_cast<size_t>(rank)]));
        continue;
      }
      for (const LinkMeasure& link : own)
        for (const double number : {1.0 * link.a, 1.0 * link.b, link.gbps, link.microseconds})
          all.push_back(number);
    }
    world_.all_gather_in_place(cpu_tensor(all.data(), {std::ssize(all)}), counts);
    for (size_t i = 0; i < all.size(); i += kNumbers)
      report_.links.push_back({.a = static_cast<int>(all[i]),
                               .b = static_cast<int>(all[i + 1]),
                               .gbps = all[i + 2],
                               .microseconds = all[i + 3]});
    for (int node = 0; node < places_.num_nodes(); ++node)
      report_.nodes[static_cast<size_t>(node)].link_gbps = median_link(node);
  }

  double median_link(int node) const {
    std::vector<double> rates;
    for (const LinkMeasure& link : report_.links)
      if (link.a == node || link.b == node) rates.push_back(link.gbps);
    if (rates.empty()) return 0;
    const auto middle = rates.begin() + std::ssize(rates) / 2;
    std::ranges::nth_element(rates, middle);
    return *middle;
  }

  void measure_files() {
    if (world_.rank() == 0) make_folders(plan_.run_dir);
    world_.barrier();
    double rate = 0;
    std::string problem;
    if (is_first_of_node()) {
      try {
        rate = file_rate(plan_.run_dir + "/preflight", static_cast<uint64_t>(node()));
      } catch (const std::exception& error) {
        problem = fmt::format("{}: {}", places_.nodes[static_cast<size_t>(node())], error.what());
      }
    }
    agree(problem);
    const std::vector<double> all = gather({rate / kGiga});
    for (size_t rank = 0; rank < all.size(); ++rank)
      if (all[rank] > 0) measure_of(rank).disk_gbps = all[rank];
  }

  /// Bytes per second of writing and syncing a file; throws if it does not read back the same.
  static double file_rate(const std::string& target, uint64_t stream) {
    std::vector<uint64_t> words(kFileWords);
    fill_pattern(words, stream);
    const TemporaryFile temporary(target);
    const FlightRange flight(flight_entry(FlightKind::file, "testing", temporary.path()));
    PositionalFile file(temporary.path(), PositionalFile::Access::write);
    const auto begin = Clock::now();
    int64_t written = 0;
    while (written < kFileWords && (written == 0 || seconds_since(begin) < kFileSeconds)) {
      file.write(written * 8, words.data() + written, kPieceWords * 8);
      written += kPieceWords;
    }
    file.sync();
    const double rate = static_cast<double>(written * 8) / seconds_since(begin);
    forget_cached(temporary.path());
    words.assign(static_cast<size_t>(written), 0);
    file.read(0, words.data(), written * 8);
    const int64_t wrong = first_wrong_byte(words, stream);
    if (wrong >= 0)
      fail(temporary.path(), " reads back with a wrong byte at ", wrong, " of ", written * 8);
    return rate;
  }

  /// So that the bytes are read from the disk, or from where the network keeps them.
  static void forget_cached(const std::string& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return;
    ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
    ::close(descriptor);
  }

  Backend& backend_;
  ProcessGroup& world_;
  const RankPlaces& places_;
  const PreflightPlan& plan_;
  std::vector<int> first_ranks_;  // of nodes
  PreflightReport report_;
};

}  // namespace

bool wants_preflight(PreflightChoice choice, int num_ranks, const char* slurm_job) {
  if (choice != PreflightChoice::automatic) return choice == PreflightChoice::on;
  return slurm_job != nullptr && num_ranks > 1;
}

void fill_pattern(std::vector<uint64_t>& words, uint64_t stream) {
  for (size_t i = 0; i < words.size(); ++i) words[i] = mixed((stream << 40) + i);
}

int64_t first_wrong_byte(const std::vector<uint64_t>& words, uint64_t stream) {
  for (size_t i = 0; i < words.size(); ++i) {
    const uint64_t difference = words[i] ^ mixed((stream << 40) + i);
    if (difference != 0) return static_cast<int64_t>(8 * i) + std::countr_zero(difference) / 8;
  }
  return -1;
}

PreflightReport run_preflight(Backend& backend, ProcessGroup& world, const RankPlaces& places,
                              const PreflightPlan& plan) {
  const TraceRange range("preflight", TraceLane::phase);
  const auto begin = Clock::now();
  PreflightReport report = Preflight(backend, world, places, plan).run();
  report.seconds = world.all_reduce(seconds_since(begin), ReduceOp::max);
  return report;
}

}  // namespace phalanx
