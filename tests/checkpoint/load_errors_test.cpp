// Checkpoints that are not of this model: every tensor that does not fit is named, on every rank,
// and what may differ can be allowed by name.
#include <gmock/gmock.h>

#include "core/checkpoint/shard_file.h"
#include "parallel/thread_process_group.h"
#include "tests/checkpoint/global_state.h"
#include "tests/data/data_helpers.h"
#include "tests/mesh/mesh_case.h"

namespace phalanx::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

/// Saves the starting weights of `line` on its mesh.
std::string save_start(const MeshCase& mesh, const TemporaryFolder& folder, GlobalState& state) {
  run_thread_ranks(static_cast<int>(mesh.world_size), [&](ThreadRank& rank) {
    MeshSystem system(mesh.layout, mesh.layout.parallel,
                      rank.process_groups(DeviceMesh(mesh.layout.parallel, rank.size())));
    std::unique_ptr<SaveFolder> saves;
    if (rank.rank() == 0) saves = std::make_unique<SaveFolder>(folder / "save");
    CheckpointSaver saver(source_of(system), {}, saves.get());
    save(saver, {.step = 4}, 4);
    state.add(system);
  });
  return folder / ("save/" + iteration_folder(4));
}

struct Loaded {
  std::vector<std::string> failures;  // of every rank; empty: none
  LoadReport report;                  // of the last rank
  GlobalState before, after;
};

void load_into(const MeshCase& mesh, const std::string& checkpoint,
               const LoadExceptions& exceptions, Loaded& loaded) {
  loaded.failures.resize(static_cast<size_t>(mesh.world_size));
  run_thread_ranks(static_cast<int>(mesh.world_size), [&](ThreadRank& rank) {
    MeshSystem system(mesh.layout, mesh.layout.parallel,
                      rank.process_groups(DeviceMesh(mesh.layout.parallel, rank.size())));
    loaded.before.add(system);
    try {
      const LoadReport report = load(checkpoint, system, exceptions);
      if (rank.rank() + 1 == rank.size()) loaded.report = report;
    } catch (const UsageError& error) {
      loaded.failures[static_cast<size_t>(rank.rank())] = error.what();
    }
    loaded.after.add(system);
  });
}

/// What every rank was told when a checkpoint of `from` was loaded into `to`.
std::string refusal(const MeshCase& from, const MeshCase& to,
                    const LoadExceptions& exceptions = {}) {
  const TemporaryFolder folder;
  GlobalState state;
  Loaded loaded;
  load_into(to, save_start(from, folder, state), exceptions, loaded);
  for (const std::string& failure : loaded.failures) EXPECT_EQ(failure, loaded.failures.front());
  // A refused checkpoint has changed nothing.
  if (!loaded.failures.front().empty()) {
    EXPECT_EQ(loaded.after.differences(loaded.before), std::vector<std::string>{});
  }
  return loaded.failures.front();
}

TEST(LoadErrors, AllThatDoesNotFitIsNamedOnEveryRank) {
  // Untied has head.weight; with 5 layers there are tensors of layer 4.
  MeshCase wider("cswa2: tp2");
  wider.layout.model.ffn_hidden_size = 32;
  EXPECT_THAT(
      refusal(MeshCase("untied: dp2"), wider),
      AllOf(HasSubstr("does not fit the model"),
            HasSubstr("unexpected: head.weight [32, 16] (--allow-unexpected-tensors head.weight)"),
            HasSubstr("layers.00.mlp.gate.weight is [24, 16], expected [32, 16]"),
            HasSubstr("layers.03.mlp.down.weight is [16, 24], expected [16, 32]"),
            Not(HasSubstr("attention"))));
  EXPECT_THAT(
      refusal(MeshCase("cswa2: dp2"), MeshCase("untied: pp2")),
      AllOf(HasSubstr("missing: head.weight [32, 16] (--allow-missing-tensors head.weight)"),
            Not(HasSubstr("unexpected")), Not(HasSubstr("expected ["))));
}

TEST(LoadErrors, ExceptionsOfOneKindOrOfOtherNamesDoNotHelp) {
  const MeshCase tied("cswa2: dp2");
  const MeshCase untied("untied: tp2");
  EXPECT_THAT(refusal(tied, untied, {.unexpected = {"head.weight"}}), HasSubstr("missing: head"));
  EXPECT_THAT(
      refusal(tied, untied, {.missing = {"head", "ead.weight", "head.weight.x", "layers.*"}}),
      HasSubstr("missing: head"));
  EXPECT_THAT(refusal(untied, tied, {.missing = {"head.weight"}}), HasSubstr("unexpected: head"));
  // A shape cannot be allowed.
  MeshCase wider("cswa2: dp1");
  wider.layout.model.ffn_hidden_size = 32;
  EXPECT_THAT(refusal(tied, wider, {.missing = {"*"}, .unexpected = {"*"}}),
              HasSubstr("layers.00.mlp.gate.weight is [24, 16]"));
}

TEST(LoadErrors, AnotherPrecisionOfTheStateIsRefused) {
  MeshCase other("cswa2: tp2");
  other.layout.dtype = DType::bf16;
  EXPECT_THAT(refusal(MeshCase("cswa2: dp2"), other), HasSubstr("tensors are f64, expected f32"));
}

TEST(LoadErrors, MissingTensorsKeepTheirValuesWhenAllowed) {
  for (const char* name : {"head.weight", "head.*", "h*", "*"}) {
    const TemporaryFolder folder;
    GlobalState saved;
    const std::string checkpoint = save_start(MeshCase("cswa2: dp2"), folder, saved);
    MeshCase untied("untied: tp2 pp2");
    untied.layout.seed = 99;
    Loaded loaded;
    load_into(untied, checkpoint, {.missing = {"layers.99", name}}, loaded);
    EXPECT_EQ(loaded.failures.front(), "");
    EXPECT_EQ(loaded.report.missing, std::vector<std::string>{"head.weight"}) << name;
    // Everything else is the checkpoint's; the head, which that has not, is as it was.
    const std::vector<std::string> only_head{"unexpected head.weight"};
    EXPECT_EQ(loaded.after.differences(saved), only_head);
    for (const std::string& difference : loaded.after.differences(loaded.before))
      EXPECT_THAT(difference, Not(HasSubstr("head.weight")));
    EXPECT_FALSE(loaded.after.differences(loaded.before).empty());
  }
}

TEST(LoadErrors, UnexpectedTensorsAreLeftOutWhenAllowed) {
  for (const char* name : {"head.weight", "head.*"}) {
    const TemporaryFolder folder;
    GlobalState saved;
    const std::string checkpoint = save_start(MeshCase("untied: pp2"), folder, saved);
    MeshCase tied("cswa2: dp2 tp2");
    tied.layout.seed = 99;
    Loaded loaded;
    load_into(tied, checkpoint, {.unexpected = {name}}, loaded);
    EXPECT_EQ(loaded.failures.front(), "");
    EXPECT_EQ(loaded.report.unexpected, std::vector<std::string>{"head.weight"});
    for (const std::string& difference : loaded.after.differences(saved))
      EXPECT_THAT(difference, HasSubstr("head.weight"));
  }
}

TEST(LoadErrors, DeeperModelsTakeTheirFirstLayers) {
  const TemporaryFolder folder;
  GlobalState saved;
  const std::string checkpoint = save_start(MeshCase("cswa2: dp2"), folder, saved);
  MeshCase deeper("cswa2: pp2 layers6");
  Loaded loaded;
  load_into(deeper, checkpoint, {.missing = {"layers.04.*", "layers.05.*"}}, loaded);
  EXPECT_EQ(loaded.failures.front(), "");
  EXPECT_FALSE(loaded.report.missing.empty());
  for (const std::string& name : loaded.report.missing)
    EXPECT_TRUE(name.starts_with("layers.04.") || name.starts_with("layers.05.")) << name;
  for (const std::string& difference : loaded.after.differences(saved))
    EXPECT_THAT(difference, HasSubstr("unexpected layers.0"));
}

/// The CheckpointDamage that every rank meets after `spoil`.
std::string damage_after(const std::function<void(const std::string& checkpoint)>& spoil) {
  const TemporaryFolder folder;
  const MeshCase mesh("cswa2: dp2 tp2");
  GlobalState state;
  const std::string checkpoint = save_start(mesh, folder, state);
  spoil(checkpoint);
  std::vector<std::string> damages(static_cast<size_t>(mesh.world_size));
  run_thread_ranks(static_cast<int>(mesh.world_size), [&](ThreadRank& rank) {
    MeshSystem system(mesh.layout, mesh.layout.parallel,
                      rank.process_groups(DeviceMesh(mesh.layout.parallel, rank.size())));
    damages[static_cast<size_t>(rank.rank())] =
        failure_of<CheckpointDamage>([&] { load(checkpoint, system); });
  });
  for (const std::string& damage : damages) EXPECT_EQ(damage, damages.front());
  return damages.front();
}

void flip_byte(const std::string& path, int64_t position) {
  PositionalFile file(path, PositionalFile::Access::write);
  char byte = 0;
  file.read(position, &byte, 1);
  byte = static_cast<char>(byte ^ 1);
  file.write(position, &byte, 1);
}

TEST(LoadDamage, IsToldOnEveryRank) {
  const auto remove = [](const char* name) {
    return
        [name](const std::string& checkpoint) { std::filesystem::remove(checkpoint + "/" + name); };
  };
  for (const char* name : {"COMMITTED", "manifest.json", "shard_00002.h5"})
    EXPECT_THAT(damage_after(remove(name)), HasSubstr(name));
  EXPECT_THAT(damage_after([](const std::string& checkpoint) {
                std::filesystem::resize_file(checkpoint + "/shard_00003.h5",
                                             file_bytes(checkpoint + "/shard_00003.h5") - 1);
              }),
              HasSubstr("shard_00003.h5"));
  EXPECT_THAT(damage_after([](const std::string& checkpoint) {
                flip_byte(checkpoint + "/shard_00001.h5", 8);  // of the superblock
              }),
              HasSubstr("shard_00001.h5"));
}

// One bit of any part of a tensor: the tensor is named, on every rank.
TEST(LoadDamage, EveryPartOfABlockIsChecked) {
  for (size_t number = 0; number < 6; ++number) {
    std::string tensor;
    const std::string damage = damage_after([&](const std::string& checkpoint) {
      const Manifest manifest = read_checkpoint_manifest(checkpoint);
      const SavedShard& shard = manifest.shards[number % manifest.shards.size()];
      const SavedBlock& block = shard.blocks[7 * number % shard.blocks.size()];
      const int64_t bytes = block.numel() * dtype_bytes(manifest.dtype);
      flip_byte(checkpoint + "/" + shard.file, block.place[number % kNumParts] + bytes - 1);
      tensor = block.tensor;
    });
    EXPECT_THAT(damage, HasSubstr(tensor));
  }
}

}  // namespace
}  // namespace phalanx::test
