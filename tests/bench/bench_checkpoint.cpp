// Speed of checkpoints under MPI: saving (to durable), loading and verifying a state of a given
// size, each right beside plain reading and writing of as many bytes per rank on the same disk.
//
//   [mpirun -n N] bench_checkpoint [--folder DIR] [--mib 512] [--rounds 5]
//
// The page cache is emptied of the files before they are read. Figures are medians over rounds.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>

#include "core/checkpoint/agreement.h"
#include "core/checkpoint/checkpoint_loader.h"
#include "core/checkpoint/checkpoint_saver.h"
#include "core/checkpoint/verify.h"
#include "data/file_io.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/mpi_process_group.h"

namespace phalanx {
namespace {

constexpr double kMebibyte = 1024.0 * 1024.0;
constexpr int64_t kColumns = 1024;
constexpr int64_t kNumTensors = 16;
constexpr int64_t kPlainPiece = int64_t{1} << 20;

struct Options {
  std::string folder;
  int64_t mebibytes = 512;  // of masters and moments, over all ranks
  int rounds = 5;
};

/// Weights and optimizer of 16 matrices, shared by data-parallel ranks.
struct State {
  State(ProcessGroups& process_groups, int64_t mebibytes) : groups(process_groups) {
    const int64_t elements = (mebibytes << 20) / (kNumParts * dtype_bytes(DType::f32));
    const int64_t rows = std::max<int64_t>(1, elements / kNumTensors / kColumns);
    for (int64_t i = 0; i < kNumTensors; ++i)
      store.add({.name = fmt::format("layers.{:02}.weight", i),
                 .global_shape = {rows, kColumns},
                 .initialiser = {.stddev = 0.02}});
    store.allocate(backend, DType::f32);
    gradients = std::make_unique<GradientBuffer>(store, backend, groups, GradientBuffer::Options{});
    optimizer = std::make_unique<DistributedOptimizer>(store, *gradients, backend, groups,
                                                       OptimizerConfig{});
    optimizer->initialise(1);
  }

  ProcessGroups& groups;
  CpuBackend backend{1};
  ParameterStore store;
  std::unique_ptr<GradientBuffer> gradients;
  std::unique_ptr<DistributedOptimizer> optimizer;
};

/// Seconds of `work` until all ranks are done.
template <class Work>
double seconds_of(ProcessGroup& world, const Work& work) {
  world.barrier();
  const auto begin = std::chrono::steady_clock::now();
  work();
  const std::chrono::duration<double> own = std::chrono::steady_clock::now() - begin;
  return world.all_reduce(own.count(), ReduceOp::max);
}

/// Makes the next reads of the file go to the disk.
void forget(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  ::close(file);
}

void forget_folder(const std::string& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) forget(entry.path());
}

void write_plain(const std::string& path, std::vector<uint8_t>& bytes) {
  std::ofstream(path).close();
  PositionalFile file(path, PositionalFile::Access::write);
  const auto size = std::ssize(bytes);
  for (int64_t at = 0; at < size; at += kPlainPiece)
    file.write(at, bytes.data() + at, std::min(kPlainPiece, size - at));
  file.sync();
}

void read_plain(const std::string& path, std::vector<uint8_t>& bytes) {
  const PositionalFile file(path, PositionalFile::Access::read);
  const auto size = std::ssize(bytes);
  for (int64_t at = 0; at < size; at += kPlainPiece)
    file.read(at, bytes.data() + at, std::min(kPlainPiece, size - at));
}

class Bench {
 public:
  Bench(ProcessGroups& groups, const Options& options)
      : world_(*groups.world),
        options_(options),
        state_(groups, options.mebibytes),
        plain_(fmt::format("{}/plain_{}", options.folder, world_.rank())) {
    if (world_.rank() == 0) folder_ = std::make_unique<SaveFolder>(options.folder + "/save");
    saver_ = std::make_unique<CheckpointSaver>(
        SaveSource{state_.store, state_.optimizer->shards(), state_.backend, world_},
        SaveOptions{.config_ini = "", .retention = {.keep_last = 1}}, folder_.get());
    bytes_.resize(static_cast<size_t>(saver_->snapshot_bytes()), 1);
  }
  ~Bench() { std::filesystem::remove(plain_); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  void round(int64_t iteration) {
    note("plain write + fsync", seconds_of(world_, [&] { write_plain(plain_, bytes_); }));
    // So that the save finds the memory that the plain file's pages had: a virtual machine may have
    // to fetch memory it never used, page by page, from its host.
    forget(plain_);
    save(iteration);
    note("plain read", seconds_of(world_, [&] { read_plain(plain_, bytes_); }));
    load(iteration);
  }

  void print() const {
    const double mebibytes = static_cast<double>(total_bytes()) / kMebibyte;
    fmt::print("{} rank(s), {:.0f} MiB, {} rounds in {}\n", world_.size(), mebibytes,
               options_.rounds, options_.folder);
    fmt::print("{:<32}{:>10}{:>10}{:>10}\n", "", "median s", "GB/s", "spread");
    for (const auto& [name, list] : seconds_) {
      std::vector<double> sorted = list;
      std::sort(sorted.begin(), sorted.end());
      const double median = sorted[sorted.size() / 2];
      fmt::print("{:<32}{:>10.3f}{:>10.2f}{:>9.0f}%\n", name, median,
                 static_cast<double>(total_bytes()) / median / 1e9,
                 100 * (sorted.back() - sorted.front()) / median);
    }
  }

 private:
  int64_t total_bytes() const { return state_.store.numel() * kNumParts * dtype_bytes(DType::f32); }
  void note(const std::string& name, double seconds) { seconds_[name].push_back(seconds); }

  void save(int64_t iteration) {
    check(saver_->start({.step = iteration}, iteration).empty(), "the save could not start");
    const SaveOutcome outcome = saver_->finish().value();
    check(outcome.problem.empty(), outcome.problem);
    note("save, until durable", outcome.durable_seconds);
    note("save, snapshot", outcome.snapshot_seconds);
  }

  void load(int64_t iteration) {
    const std::string path = options_.folder + "/save/" + iteration_folder(iteration);
    if (world_.rank() == 0) forget_folder(path);
    IoWatchdog watchdog("", std::chrono::milliseconds(0), [](const std::string&) {});
    const auto read = [&] {
      const Manifest manifest = open_checkpoint(path, world_, watchdog);
      load_checkpoint(path, manifest,
                      {state_.store, *state_.optimizer, *state_.gradients, state_.backend, world_},
                      {}, watchdog);
    };
    note("load, checked", seconds_of(world_, read));
    if (world_.rank() == 0) forget_folder(path);
    const auto verify = [&] {
      if (world_.rank() == 0) check(verify_checkpoint(path, {.threads = 0}).intact(), "damaged");
    };
    note("verify, all cores", seconds_of(world_, verify));
  }

  ProcessGroup& world_;
  Options options_;
  State state_;
  std::string plain_;
  std::unique_ptr<SaveFolder> folder_;
  std::unique_ptr<CheckpointSaver> saver_;
  std::vector<uint8_t> bytes_;
  std::map<std::string, std::vector<double>> seconds_;
};

Options read_options(int argc, char** argv) {
  namespace po = boost::program_options;
  Options options;
  po::options_description described("options");
  described.add_options()("folder", po::value(&options.folder)->default_value("bench_checkpoint"))(
      "mib", po::value(&options.mebibytes)->default_value(512))(
      "rounds", po::value(&options.rounds)->default_value(5));
  po::variables_map values;
  po::store(po::parse_command_line(argc, argv, described), values);
  po::notify(values);
  return options;
}

void run(const Options& options, MpiSession& session) {
  const ParallelConfig parallel;
  const DeviceMesh mesh(parallel, session.size());
  ProcessGroups groups = make_mpi_process_groups(mesh);
  if (session.rank() == 0) std::filesystem::create_directories(options.folder);
  groups.world->barrier();
  {
    Bench bench(groups, options);
    for (int round = 0; round < options.rounds; ++round) bench.round(round + 1);
    if (session.rank() == 0) bench.print();
    groups.world->barrier();
  }
  if (session.rank() == 0) std::filesystem::remove_all(options.folder);
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) {
  try {
    const phalanx::Options options = phalanx::read_options(argc, argv);
    phalanx::MpiSession session(&argc, &argv);
    phalanx::run(options, session);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "bench_checkpoint: " << error.what() << "\n";
    std::_Exit(1);  // other ranks wait for this one; mpirun ends them
  }
}
