// CheckpointSaver: who writes what, what a save tells, and how it fails. And what a load costs.
#include <gmock/gmock.h>
#include <hdf5.h>

#include <filesystem>
#include <future>
#include <set>

#include "core/checkpoint/shard_file.h"
#include "parallel/thread_process_group.h"
#include "tests/allocation_count.h"
#include "tests/checkpoint/global_state.h"
#include "tests/data/data_helpers.h"
#include "tests/mesh/faulty_process_group.h"
#include "tests/mesh/mesh_case.h"

namespace phalanx::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

/// A rank with its system and a folder to save to.
struct SavingRank {
  ThreadRank& thread;
  MeshSystem& system;
  SaveFolder* folder;  // of rank 0
  std::string path;    // of all checkpoints

  bool first() const { return thread.rank() == 0; }
  ProcessGroup& world() const { return *system.groups.world; }
  std::string checkpoint(int64_t step) const { return path + "/" + iteration_folder(step); }
};

void on_ranks(const MeshCase& mesh, const std::function<void(SavingRank&)>& body) {
  const TemporaryFolder folder;
  run_thread_ranks(static_cast<int>(mesh.world_size), [&](ThreadRank& rank) {
    MeshSystem system(mesh.layout, mesh.layout.parallel,
                      rank.process_groups(DeviceMesh(mesh.layout.parallel, rank.size())));
    const std::string path = folder / "save";
    std::unique_ptr<SaveFolder> saves;
    if (rank.rank() == 0) saves = std::make_unique<SaveFolder>(path);
    SavingRank saving{rank, system, saves.get(), path};
    body(saving);
    saving.world().barrier();  // nobody's folder goes while others look at it
  });
}

std::vector<Piece> shard_pieces(const MeshSystem& system) {
  std::vector<Piece> pieces;
  for (const OptimizerShard& shard : system.optimizer.shards())
    pieces.push_back(piece_of(*shard.parameter, shard.row_begin, shard.row_end));
  return pieces;
}

bool holds(const std::vector<Piece>& pieces, const SavedBlock& block) {
  return std::ranges::any_of(pieces, [&](const Piece& piece) {
    return piece.name == block.tensor && piece.offset[1] == block.offset[1] &&
           piece.size[1] == block.size[1] && piece.offset[0] <= block.offset[0] &&
           block.offset[0] + block.size[0] <= piece.offset[0] + piece.size[0];
  });
}

/// Blocks by the rank that wrote them.
std::map<int, std::vector<SavedBlock>> blocks_by_rank(const Manifest& manifest, int num_ranks) {
  std::map<int, std::vector<SavedBlock>> blocks;
  for (int rank = 0; rank < num_ranks; ++rank) {
    blocks[rank];
    for (const SavedShard& shard : manifest.shards)
      if (shard.file == shard_name(rank)) blocks[rank] = shard.blocks;
  }
  return blocks;
}

// A rank writes more than another that could take over a block only by less than that block: no
// single block can move and make the larger of the two smaller.
void expect_balanced(const Manifest& manifest, const std::vector<std::vector<Piece>>& pieces) {
  const auto blocks = blocks_by_rank(manifest, static_cast<int>(pieces.size()));
  std::map<int, int64_t> load;
  for (const auto& [rank, own] : blocks)
    for (const SavedBlock& block : own) load[rank] += block.numel();
  for (const auto& [rank, own] : blocks)
    for (const SavedBlock& block : own) {
      ASSERT_TRUE(holds(pieces[static_cast<size_t>(rank)], block)) << rank << " " << block.tensor;
      for (const auto& [other, elements] : load)
        if (other != rank && holds(pieces[static_cast<size_t>(other)], block)) {
          EXPECT_LE(load[rank], elements + block.numel())
              << "rank " << rank << " writes " << block.tensor << ", rank " << other << " could";
        }
    }
}

class SaverMesh : public testing::TestWithParam<const char*> {};

TEST_P(SaverMesh, WritesEveryElementOnceAndSharesTheWork) {
  const MeshCase mesh(GetParam());
  std::vector<std::vector<Piece>> pieces(static_cast<size_t>(mesh.world_size));
  on_ranks(mesh, [&](SavingRank& rank) {
    pieces[static_cast<size_t>(rank.thread.rank())] = shard_pieces(rank.system);
    CheckpointSaver saver(source_of(rank.system), {}, rank.folder);
    EXPECT_LE(saver.snapshot_bytes(), state_bytes(rank.system));
    const SaveOutcome outcome = save(saver, {.step = 7}, 7);
    const int64_t copied = rank.world().all_reduce(saver.snapshot_bytes(), ReduceOp::sum);
    EXPECT_EQ(copied, outcome.bytes);
    if (!rank.first()) return;
    const Manifest manifest = read_checkpoint_manifest(rank.checkpoint(7));
    EXPECT_EQ(manifest.data_bytes(), outcome.bytes);
    int64_t elements = 0;
    for (const SavedShard& shard : manifest.shards)
      for (const SavedBlock& block : shard.blocks) elements += block.numel();
    EXPECT_EQ(elements * kNumParts * dtype_bytes(manifest.dtype), outcome.bytes);
    int64_t expected = 0;
    const MeshSystem whole(mesh.layout, {}, make_single_process_groups());
    for (int64_t i = 0; i < whole.store.size(); ++i) expected += whole.store[i].numel();
    EXPECT_EQ(elements, expected);
    expect_balanced(manifest, pieces);
  });
}
INSTANTIATE_TEST_SUITE_P(Meshes, SaverMesh,
                         testing::Values("cswa2: dp1", "cswa2: dp8", "cswa2: tp4 kv1 pp2",
                                         "cswa2: pp2 dp4", "cswa2: dp2 tp2 sp cp2 zero3",
                                         "moe: dp4 ep2 etp2", "olmo2: tp8 kv2", "untied: pp4 dp2"),
                         [](const auto& info) { return MeshCase(info.param).name(); });

/// Ranks that wrote a part of a tensor whose name holds `part`.
std::set<int> writers_of(const Manifest& manifest, const std::string& part) {
  std::set<int> writers;
  for (const auto& [rank, own] : blocks_by_rank(manifest, static_cast<int>(manifest.world_size)))
    for (const SavedBlock& block : own)
      if (block.tensor.find(part) != std::string::npos) writers.insert(rank);
  return writers;
}

std::set<int> writers_on(const char* line, const std::vector<std::string>& parts) {
  std::set<int> writers;
  on_ranks(MeshCase(line), [&](SavingRank& rank) {
    CheckpointSaver saver(source_of(rank.system), {}, rank.folder);
    save(saver, {.step = 1}, 1);
    if (!rank.first()) return;
    for (const std::string& part : parts)
      writers.merge(writers_of(read_checkpoint_manifest(rank.checkpoint(1)), part));
  });
  return writers;
}

TEST(Saver, SharesOutWhatManyHold) {
  // One key-value head that four ranks hold.
  EXPECT_EQ(writers_on("cswa2: tp4 kv1", {".k.weight", ".v.weight"}), (std::set<int>{0, 1, 2, 3}));
  // One table at both ends of a pipeline of equal stages: ranks 0 and 1, ranks 2 and 3.
  const std::set<int> tied = writers_on("cswa2: pp2 dp2 layout=2,2", {"embedding"});
  EXPECT_TRUE(tied.contains(0) || tied.contains(1));
  EXPECT_TRUE(tied.contains(2) || tied.contains(3));
}

/// Keeps all other threads out of HDF5 while it lives: the library's lock is held during a
/// callback. So a save cannot write before the test is ready for it.
class Hdf5Hold {
 public:
  Hdf5Hold() : thread_([this] { hold(); }) { entered_.get_future().wait(); }
  ~Hdf5Hold() {
    release_.set_value();
    thread_.join();
  }
  Hdf5Hold(const Hdf5Hold&) = delete;
  Hdf5Hold& operator=(const Hdf5Hold&) = delete;

 private:
  void hold() {
    const hid_t in_memory = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_fapl_core(in_memory, 1024, 0);
    const hid_t file = H5Fcreate("hold", H5F_ACC_TRUNC, H5P_DEFAULT, in_memory);
    H5Gclose(H5Gcreate2(file, "once", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    const auto wait = [](hid_t, const char*, const H5L_info_t*, void* self) -> herr_t {
      auto* hold = static_cast<Hdf5Hold*>(self);
      hold->entered_.set_value();
      hold->release_.get_future().wait();
      return 0;
    };
    H5Literate(file, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, wait, this);
    H5Fclose(file);
    H5Pclose(in_memory);
  }

  std::promise<void> entered_;
  std::promise<void> release_;
  std::thread thread_;
};

TEST(Saver, TrainingGoesOnAndChangesNothingOfTheSave) {
  const MeshCase mesh("cswa2: dp2 tp2");
  GlobalState at_save, later, loaded;
  std::optional<Hdf5Hold> hold;
  on_ranks(mesh, [&](SavingRank& rank) {
    MeshSystem& system = rank.system;
    CheckpointSaver saver(source_of(system), {}, rank.folder);
    system.step(batch_of_step(mesh.layout, 0));
    at_save.add(system);
    if (rank.first()) hold.emplace();
    rank.world().barrier();
    EXPECT_EQ(saver.start({.step = 1}, 1), "");
    for (int64_t step = 1; step < 3; ++step) system.step(batch_of_step(mesh.layout, step));
    later.add(system);
    EXPECT_FALSE(saver.poll().has_value());
    EXPECT_TRUE(saver.in_flight());
    EXPECT_THAT(failure_of<Error>([&] { saver.start({.step = 3}, 3); }),
                HasSubstr("still being written"));
    rank.world().barrier();
    if (rank.first()) hold.reset();
    const auto outcome = saver.finish();
    EXPECT_TRUE(outcome.has_value() && outcome->problem.empty());
    EXPECT_FALSE(saver.in_flight());
    EXPECT_FALSE(saver.finish().has_value());
    load(rank.checkpoint(1), system);
    EXPECT_EQ(system.optimizer.num_steps(), 1);
    loaded.add(system);
  });
  EXPECT_FALSE(later.differences(at_save).empty());
  EXPECT_EQ(loaded.differences(at_save), std::vector<std::string>{});
}

TEST(Saver, PollDoesNotCommunicateWhileIdle) {
  on_ranks(MeshCase("cswa2: dp4"), [&](SavingRank& rank) {
    CheckpointSaver saver(source_of(rank.system), {}, rank.folder);
    const TrafficSnapshot before(rank.world());
    for (int i = 0; i < 3; ++i) EXPECT_FALSE(saver.poll().has_value());
    for (int i = 0; i < kNumCollectives; ++i)
      EXPECT_EQ(before.since(static_cast<Collective>(i)).calls, 0);
    save(saver, {.step = 1}, 1);
    const TrafficSnapshot after(rank.world());
    EXPECT_FALSE(saver.poll().has_value());
    for (int i = 0; i < kNumCollectives; ++i)
      EXPECT_EQ(after.since(static_cast<Collective>(i)).calls, 0);
  });
}

TEST(Saver, TellsEveryRankTheSame) {
  on_ranks(MeshCase("cswa2: dp2 tp2"), [&](SavingRank& rank) {
    CheckpointSaver saver(source_of(rank.system), {.retention = {.keep_last = 1}}, rank.folder);
    save(saver, {.step = 1}, 1);
    const SaveOutcome outcome = save(saver, {.step = 2}, 2);
    for (const double value :
         {outcome.stall_seconds, outcome.durable_seconds, outcome.slowest_seconds,
          static_cast<double>(outcome.slowest_rank), static_cast<double>(outcome.slowest_bytes),
          static_cast<double>(outcome.bytes), static_cast<double>(outcome.iteration)}) {
      EXPECT_EQ(rank.world().all_reduce(value, ReduceOp::max), value);
      EXPECT_EQ(rank.world().all_reduce(-value, ReduceOp::max), -value);
    }
    EXPECT_EQ(outcome.iteration, 2);
    EXPECT_GT(outcome.stall_seconds, 0);
    EXPECT_GT(outcome.slowest_seconds, 0);
    EXPECT_LT(outcome.slowest_seconds, outcome.durable_seconds);
    EXPECT_EQ(outcome.slowest_bytes,
              file_bytes(rank.checkpoint(2) + "/" + shard_name(outcome.slowest_rank)));
    EXPECT_EQ(outcome.retired, std::vector<int64_t>(rank.first() ? 1 : 0, 1));
    EXPECT_FALSE(fs::exists(rank.checkpoint(1)));
  });
}

/// A save that `obstruct` meets in its folder, before anybody writes there: what each rank was
/// told. Then nothing is left of it, and the next save succeeds and loads.
void expect_failure(const std::function<void(const std::string& writing)>& obstruct,
                    const testing::Matcher<std::string>& told) {
  on_ranks(MeshCase("cswa2: dp2 tp2"), [&](SavingRank& rank) {
    bool armed = false;
    const std::string writing = rank.path + "/" + iteration_folder(5) + ".writing.1";
    // Rank 0 has made the folder when it tells the others of it.
    FaultyProcessGroup world(rank.thread.world_group(), [&](Collective, const Tensor&) {
      if (std::exchange(armed, false)) obstruct(writing);
      return FaultyProcessGroup::Fault::none;
    });
    const MeshSystem& system = rank.system;
    CheckpointSaver saver({system.store, system.optimizer.shards(), rank.system.backend, world}, {},
                          rank.folder);
    armed = rank.first();
    EXPECT_EQ(saver.start({.step = 5}, 5), "");
    const auto outcome = saver.finish();
    ASSERT_TRUE(outcome.has_value());
    EXPECT_THAT(outcome->problem, told);
    EXPECT_FALSE(saver.in_flight());
    world.barrier();
    EXPECT_FALSE(fs::exists(writing));
    EXPECT_FALSE(fs::exists(rank.checkpoint(5)));
    save(saver, {.step = 6}, 6);
    EXPECT_EQ(load(rank.checkpoint(6), rank.system).bytes_read, state_bytes(rank.system));
  });
}

TEST(Saver, AFolderInPlaceOfAShardIsToldOnEveryRank) {
  expect_failure(
      [](const std::string& writing) { fs::create_directories(writing + "/shard_00002.h5/x"); },
      AllOf(HasSubstr("rank 2: "), HasSubstr("shard_00002.h5")));
}
TEST(Saver, AFolderThatVanishesIsToldOnEveryRank) {
  expect_failure([](const std::string& writing) { fs::remove_all(writing); },
                 AllOf(HasSubstr("rank 0: "), HasSubstr(".writing.1")));
}
TEST(Saver, AnIndexThatCannotBeWrittenIsToldOnEveryRank) {
  expect_failure(
      [](const std::string& writing) { fs::create_directories(writing + "/index.h5/x"); },
      AllOf(HasSubstr("rank 0: "), HasSubstr("index.h5")));
}
TEST(Saver, ACommitThatFailsIsToldOnEveryRank) {
  expect_failure(
      [](const std::string& writing) { fs::create_directories(writing + "/COMMITTED/x"); },
      AllOf(HasSubstr("rank 0: "), HasSubstr("COMMITTED")));
}

// /proc has no free space at all.
TEST(Saver, AFullDiskIsFoundBeforeAnythingIsWritten) {
  on_ranks(MeshCase("cswa2: dp2"), [&](SavingRank& rank) {
    CheckpointSaver saver(source_of(rank.system), {}, rank.folder);
    const std::string away = rank.path + ".away";
    if (rank.first()) {
      fs::rename(rank.path, away);
      fs::create_directory_symlink("/proc", rank.path);
    }
    EXPECT_THAT(saver.start({.step = 5}, 5),
                AllOf(HasSubstr(" has 0 bytes free"), HasSubstr("--save-keep-last")));
    EXPECT_FALSE(saver.in_flight());
    rank.world().barrier();
    if (rank.first()) {
      fs::remove(rank.path);
      fs::rename(away, rank.path);
    }
    rank.world().barrier();
    save(saver, {.step = 6}, 6);
  });
}

TEST(Saver, ASaveThatNobodyWaitsForIsNoCheckpoint) {
  on_ranks(MeshCase("cswa2: dp2"), [&](SavingRank& rank) {
    {
      CheckpointSaver saver(source_of(rank.system), {}, rank.folder);
      EXPECT_EQ(saver.start({.step = 1}, 1), "");
    }
    rank.world().barrier();
    EXPECT_TRUE(list_checkpoints(rank.path).empty());
    CheckpointSaver saver(source_of(rank.system), {}, rank.folder);
    save(saver, {.step = 1}, 1);
    EXPECT_EQ(std::ssize(list_checkpoints(rank.path)), 1);
  });
}

TEST(Saver, ALaterStartEndsTheSave) {
  const TemporaryFolder folder;
  const MeshCase mesh("cswa2: dp1");
  MeshSystem system(mesh.layout, {}, make_single_process_groups());
  SaveFolder saves(folder / "save");
  CheckpointSaver saver(source_of(system), {}, &saves);
  std::optional<Hdf5Hold> hold(std::in_place);
  EXPECT_EQ(saver.start({.step = 1}, 1), "");
  const SaveFolder later(folder / "save");  // takes away what the first was writing
  hold.reset();
  EXPECT_THAT(failure_of<FencedError>([&] { saver.finish(); }), HasSubstr("epoch 2"));
  EXPECT_TRUE(list_checkpoints(folder / "save").empty());
}

// What a load allocates is the manifest, in small parts, and a buffer: of all ranks together much
// less than one rank's half of the state, which is what a copy would take.
TEST(Loader, AllocatesNoSecondCopy) {
  for (const char* line : {"cswa2: dp2 kv8", "cswa2: tp2 kv8", "cswa2: dp2 kv8 zero3"}) {
    MeshCase mesh(line);
    mesh.layout.model.hidden_size = 256;
    mesh.layout.model.ffn_hidden_size = 1024;
    mesh.layout.model.num_layers = 2;
    mesh.layout.dtype = DType::f32;
    on_ranks(mesh, [&](SavingRank& rank) {
      CheckpointSaver saver(source_of(rank.system), {}, rank.folder);
      save(saver, {.step = 1}, 1);
      rank.world().barrier();
      const int64_t before = count_allocated_bytes();
      rank.world().barrier();
      load(rank.checkpoint(1), rank.system);
      rank.world().barrier();
      const int64_t allocated = count_allocated_bytes() - before;
      const int64_t state = rank.world().all_reduce(state_bytes(rank.system), ReduceOp::sum);
      EXPECT_LT(allocated, state / 6) << line;
      EXPECT_GT(allocated, 1000) << "nothing is counted";
    });
  }
}

}  // namespace
}  // namespace phalanx::test
