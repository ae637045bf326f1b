// A checkpoint written on one mesh goes on on another: every bit of the state, and the next step
// within rounding; on the same mesh, every bit of the next steps too. One test per pair of meshes.
#include <gtest/gtest.h>

#include <numeric>

#include "core/train/resume_certificate.h"
#include "parallel/thread_process_group.h"
#include "tests/checkpoint/global_state.h"
#include "tests/data/data_helpers.h"
#include "tests/mesh/mesh_case.h"

namespace phalanx::test {
namespace {

/// "MODEL: MESH" and the other mesh, as words of MeshCase.
struct Pair {
  const char* from;
  const char* to;
  DType dtype = DType::f64;
  DType to_dtype = dtype;
};

// clang-format off
const Pair kPairs[] = {
    // The same mesh.
    {"cswa2: dp1", "dp1"},
    {"cswa2: dp2 tp2 sp pp2", "dp2 tp2 sp pp2"},
    {"cswa2: dp2 tp2 sp pp2", "dp2 tp2 sp pp2", DType::f32},
    {"cswa2: dp2 tp2 sp pp2", "dp2 tp2 sp pp2", DType::bf16},
    {"cswa2: dp2 tp4 kv2", "dp2 tp4 kv2", DType::bf16},
    {"swa3: cp2 tp2 sp pp2 zb", "cp2 tp2 sp pp2 zb", DType::f32},
    {"cswa2: dp4 pp2 vp2 zero3", "dp4 pp2 vp2 zero3", DType::bf16},
    {"moe: dp2 cp2 tp2 sp ep4 etp2", "dp2 cp2 tp2 sp ep4 etp2", DType::f32},
    // One rank and eight, both ways.
    {"cswa2: dp1", "dp8"},
    {"cswa2: dp8", "dp1"},
    {"cswa2: dp1", "dp2 tp2 pp2", DType::f32},
    {"cswa2: dp2 tp2 pp2", "dp1", DType::f32},
    {"cswa2: dp1", "dp2 tp2 sp pp2", DType::bf16},
    {"cswa2: dp2 tp2 sp pp2", "dp1", DType::bf16},
    {"moe: dp1", "dp4 ep2 etp2 pp2"},
    {"moe: dp4 ep2 etp2 pp2", "dp1", DType::f32},
    {"hybrid: dp1 kv8", "tp8 kv8 sp"},
    {"hybrid: tp8 kv8 sp", "dp1 kv8"},
    {"untied: dp1", "pp4 vp2 dp2 layers8"},
    {"swa3: cp8", "dp1", DType::f32},
    // Axes among each other.
    {"cswa2: tp4", "dp4"},
    {"cswa2: tp2 sp", "tp4"},
    {"cswa2: pp2", "pp4"},
    {"cswa2: pp4", "pp2 vp2"},
    {"cswa2: pp2 vp2 tp2", "pp4 dp2 zb"},
    {"cswa2: pp2 layout=4,0", "pp2 layout=1,3", DType::f32},
    {"untied: pp4 zb dp2", "tp2 sp dp2"},
    {"naive2: cp4", "tp2 dp2"},
    {"sparse: cp2 dp2", "pp2 gpipe tp2 sp"},
    {"documents: dp2 cp2 tp2", "pp2 dp4 vp2"},
    {"olmo2: tp4 kv2 sp", "pp2 cp2 tp2 kv2"},
    {"olmo2: dp2 tp2", "cp4 pp2 vp2", DType::f32},
    // Fewer key-value heads than ranks; tied embeddings at both ends.
    {"cswa2: tp4 kv2", "tp2 dp2 kv2"},
    {"cswa2: tp4 kv1 sp", "tp8 kv1"},
    {"cswa2: dp2 kv1", "tp4 kv1 pp2", DType::bf16},
    {"cswa2: tp2 pp2 dp2 kv1", "tp8 kv1 sp", DType::f32},
    {"cswa2: pp2 dp4", "pp4 tp2"},
    // Experts.
    {"moe: dp4 ep4", "dp4 etp4"},
    {"moe: dp4 ep2 etp2", "dp2 ep2"},
    {"moe: tp2 sp ep2", "cp2 ep2 pp2"},
    {"moe: dp2 cp2 tp2 sp ep4 etp2", "dp4 pp2 vp2 ep2"},
    {"moe: tp4 sp etp2 kv2", "dp8 ep8 kv2", DType::f32},
    // Sharding of the state and of the parameters.
    {"cswa2: dp4", "dp4 zero3"},
    {"cswa2: dp4 zero3", "dp4"},
    {"cswa2: dp2 tp2 sp cp2 zero3", "dp2 pp2 gpipe zero3", DType::f32},
    {"cswa2: dp8 zero3", "dp1", DType::bf16},
    {"cswa2: tp2 pp2", "dp8 zero3", DType::bf16},
    {"moe: dp4 pp2 ep2 zero3", "dp4 ep2 etp2"},
    {"moe: dp2 tp2 sp", "dp4 ep2 etp2 zero3", DType::f32},
    // Another precision with the same masters.
    {"cswa2: dp2 tp2", "dp2 pp2", DType::f32, DType::bf16},
    {"cswa2: dp2 pp2 zero3", "tp2", DType::bf16, DType::f32},
};
// clang-format on

constexpr int64_t kSavedSteps = 2;
// Any numbers: they come back as they are.
constexpr TrainCounters kCounters{.step = kSavedSteps + 3,
                                  .consumed_samples = 8,
                                  .consumed_tokens = 256,
                                  .skipped_steps = 3,
                                  .skipped_in_row = 1};

std::string model_of(const Pair& pair) {
  const std::string line = pair.from;
  return line.substr(0, line.find(':') + 1);
}

/// Both systems, with as many micro-batches as either needs.
struct Cases {
  MeshCase from;
  MeshCase to;

  explicit Cases(const Pair& pair) : from(pair.from), to(model_of(pair) + " " + pair.to) {
    const int64_t micro_batches =
        std::lcm(from.layout.num_micro_batches, to.layout.num_micro_batches);
    from.layout.num_micro_batches = to.layout.num_micro_batches = micro_batches;
    from.layout.dtype = pair.dtype;
    to.layout.dtype = pair.to_dtype;
    to.layout.seed = from.layout.seed + 76;
    to.layout.model.num_layers = from.layout.model.num_layers =
        std::max(to.layout.model.num_layers, from.layout.model.num_layers);
  }
  bool same() const {
    return from.text.substr(from.text.find(':')) == to.text.substr(to.text.find(':')) &&
           from.layout.dtype == to.layout.dtype;
  }
};

/// What a run shows after it was saved or loaded.
struct Trace {
  GlobalState at_save;
  StepMetrics next;  // the step after
  GlobalState after_two_more;
  std::vector<int64_t> num_updates;  // of all ranks
};

void go_on(MeshSystem& system, Trace& trace) {
  trace.at_save.add(system);
  const StepMetrics next = system.step(batch_of_step(system.layout, kSavedSteps));
  system.step(batch_of_step(system.layout, kSavedSteps + 1));
  trace.after_two_more.add(system);
  if (system.groups.world->rank() == 0) trace.next = next;
}

void run_and_save(const MeshCase& mesh, const std::string& path, Trace& trace) {
  run_thread_ranks(static_cast<int>(mesh.world_size), [&](ThreadRank& rank) {
    MeshSystem system(mesh.layout, mesh.layout.parallel,
                      rank.process_groups(DeviceMesh(mesh.layout.parallel, rank.size())));
    for (int64_t step = 0; step < kSavedSteps; ++step)
      system.step(batch_of_step(mesh.layout, step));
    std::unique_ptr<SaveFolder> folder;
    if (rank.rank() == 0) folder = std::make_unique<SaveFolder>(path);
    CheckpointSaver saver(source_of(system), {.config_ini = "seed = 1\n"}, folder.get());
    save(saver, kCounters, system.optimizer.num_steps());
    go_on(system, trace);
  });
}

void load_and_run(const MeshCase& mesh, const std::string& path, Trace& trace) {
  trace.num_updates.resize(static_cast<size_t>(mesh.world_size));
  run_thread_ranks(static_cast<int>(mesh.world_size), [&](ThreadRank& rank) {
    MeshSystem system(mesh.layout, mesh.layout.parallel,
                      rank.process_groups(DeviceMesh(mesh.layout.parallel, rank.size())));
    const LoadReport report = load(path, system);
    EXPECT_EQ(report.bytes_read, state_bytes(system)) << "rank " << rank.rank();
    EXPECT_TRUE(report.missing.empty() && report.unexpected.empty());
    trace.num_updates[static_cast<size_t>(rank.rank())] = system.optimizer.num_steps();
    go_on(system, trace);
  });
}

/// Relative. In bf16 the layout check's bound is larger than the values; the certificate's is not.
double tolerance(const Cases& cases) {
  if (cases.same()) return 0.0;
  if (cases.from.layout.dtype == DType::bf16 || cases.to.layout.dtype == DType::bf16)
    return certificate_tolerance(cases.from.layout.model, DType::bf16);
  return rounding_tolerance(cases.from.layout);
}

class MeshChange : public testing::TestWithParam<Pair> {};

TEST_P(MeshChange, GoesOn) {
  const Cases cases(GetParam());
  const TemporaryFolder folder;
  Trace saved;
  Trace loaded;
  run_and_save(cases.from, folder / "save", saved);
  const std::string checkpoint = folder / ("save/" + iteration_folder(kCounters.step));
  load_and_run(cases.to, checkpoint, loaded);

  const std::vector<std::string> none;
  EXPECT_EQ(saved.at_save.problems(), none);
  EXPECT_EQ(loaded.at_save.problems(), none);
  EXPECT_EQ(loaded.at_save.differences(saved.at_save), none);
  EXPECT_EQ(loaded.num_updates,
            std::vector<int64_t>(static_cast<size_t>(cases.to.world_size), kSavedSteps));
  const Manifest manifest = read_checkpoint_manifest(checkpoint);
  EXPECT_EQ(manifest.counters, kCounters);
  EXPECT_EQ(manifest.num_updates, kSavedSteps);
  EXPECT_EQ(std::ssize(manifest.tensors), saved.at_save.num_tensors());

  const double relative = tolerance(cases);
  EXPECT_NEAR(loaded.next.loss, saved.next.loss, relative * saved.next.loss);
  EXPECT_NEAR(loaded.next.gradient_norm, saved.next.gradient_norm,
              relative * saved.next.gradient_norm);
  if (cases.same()) {
    EXPECT_EQ(loaded.after_two_more.differences(saved.after_two_more), none);
  }
}

std::string name_of(const Pair& pair) {
  std::string name = MeshCase(pair.from).name() + "_to_";
  for (const char* c = pair.to; *c != '\0'; ++c)
    name += std::isalnum(static_cast<unsigned char>(*c)) != 0 ? std::string(1, *c) : "_";
  name += std::string("_") + dtype_name(pair.dtype);
  if (pair.to_dtype != pair.dtype) name += std::string("_to_") + dtype_name(pair.to_dtype);
  return name;
}
/// For ctest's names.
void PrintTo(const Pair& pair, std::ostream* out) {
  *out << name_of(pair);
}

INSTANTIATE_TEST_SUITE_P(Pairs, MeshChange, testing::ValuesIn(kPairs),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
}  // namespace phalanx::test
