// Weights files on every mesh: the same bytes whatever ranks wrote them, and any rank reads its
// own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

#include "core/train/weights_file.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/parallel/mesh_store.h"
#include "tests/train/tiny_run.h"

namespace phalanx {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr uint64_t kSeed = 3;
const WeightsInfo kInfo{
    .config_ini = "seed = 3\n", .step = 1, .consumed_samples = 2, .tokenizer_hash = "t"};

/// A rank with a store and, cut over the ranks that share it, masters that are its seed's values.
struct Rank {
  Rank(ThreadRank& thread, const ParallelConfig& config, DType dtype)
      : groups(thread.process_groups(DeviceMesh(config, thread.size()))) {
    test::register_on_mesh(store, groups, 2);
    store.allocate(backend, dtype);
    backend.fill(store.flat_value(), -1.0);
  }

  /// Whole rows, at boundaries that differ between stages: a tied embedding overlaps itself.
  std::vector<OptimizerShard> shards() {
    std::vector<OptimizerShard> list;
    for (int64_t i = 0; i < store.size(); ++i) {
      const Parameter& parameter = store[i];
      const bool expert = parameter.spec.name.find("experts") != std::string::npos;
      const ProcessGroup& sharing = expert ? *groups.expert_dp : *groups.dp_cp;
      const auto boundary = [&](int rank) {
        const int64_t rows = parameter.shape[0];
        const int64_t shift = rank == 0 || rank == sharing.size() ? 0 : groups.pp->rank();
        return std::min(rows, rows * rank / sharing.size() + shift);
      };
      const int64_t begin = boundary(sharing.rank());
      const int64_t end = boundary(sharing.rank() + 1);
      if (begin == end) continue;
      const Shape shape{end - begin, parameter.matrix_shape()[1]};
      const DType dtype = accumulator_dtype(store.dtype());
      blocks.push_back(backend.allocate(shape.numel() * dtype_bytes(dtype)));
      const Tensor master{blocks.back().get(), shape, dtype, Device::cpu};
      initialise_rows(backend, parameter, begin, master, kSeed);
      list.push_back(
          {.parameter = &parameter, .row_begin = begin, .row_end = end, .master = master});
    }
    return list;
  }
  void save(const std::string& path) {
    save_weights(path, kInfo, {store, shards(), backend, *groups.world});
  }
  void load(const std::string& path) { load_weights(path, "t", store, backend, *groups.world); }

  ProcessGroups groups;
  CpuBackend backend{1};
  ParameterStore store;
  std::vector<std::shared_ptr<void>> blocks;
};

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// What one rank writes.
const std::string& reference_path(DType dtype) {
  static std::map<DType, std::string> paths;
  std::string& path = paths[dtype];
  if (path.empty()) {
    path = fresh_folder(std::string("reference_") + dtype_name(dtype)) + "/weights.h5";
    run_thread_ranks(1, [&](ThreadRank& thread) { Rank(thread, {}, dtype).save(path); });
  }
  return path;
}

struct Case {
  const char* name;
  ParallelConfig config;
  int num_ranks;
};

class WeightsMesh : public testing::TestWithParam<Case> {};

TEST_P(WeightsMesh, WritesTheFileOfOneRank) {
  const Case& c = GetParam();
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    const std::string path = fresh_folder(std::string("mesh_") + c.name) + "/weights.h5";
    run_thread_ranks(c.num_ranks,
                     [&](ThreadRank& thread) { Rank(thread, c.config, dtype).save(path); });
    EXPECT_TRUE(bytes_of(path) == bytes_of(reference_path(dtype))) << dtype_name(dtype);
  }
}

TEST_P(WeightsMesh, EveryRankReadsItsOwnPieces) {
  const Case& c = GetParam();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::string& path = reference_path(dtype);
    run_thread_ranks(c.num_ranks, [&](ThreadRank& thread) {
      Rank read(thread, c.config, dtype);
      read.load(path);
      Rank drawn(thread, c.config, dtype);
      drawn.store.initialise(drawn.backend, kSeed);
      // Masters are drawn in f32 and rounded, as `copy` rounds what was read.
      EXPECT_EQ(std::memcmp(read.store.flat_value().data, drawn.store.flat_value().data,
                            static_cast<size_t>(read.store.flat_value().bytes())),
                0);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(
    Meshes, WeightsMesh,
    testing::Values(Case{"dp2", {}, 2}, Case{"dp5", {}, 5},
                    Case{"tp2", {.tensor_model_parallel_size = 2}, 2},
                    Case{"tp4_shared_kv", {.tensor_model_parallel_size = 4}, 4},
                    Case{"pp2_tied", {.pipeline_model_parallel_size = 2}, 2},
                    Case{"pp2_dp3_tied", {.pipeline_model_parallel_size = 2}, 6},
                    Case{"cp2", {.context_parallel_size = 2}, 2},
                    Case{"ep2", {.expert_model_parallel_size = 2}, 2},
                    Case{"ep2_expert_dp2", {.expert_model_parallel_size = 2}, 4},
                    Case{"ep2_expert_tp2",
                         {.tensor_model_parallel_size = 2,
                          .expert_model_parallel_size = 2,
                          .expert_tensor_parallel_size = 2},
                         4},
                    Case{"tp2_pp2_dp2_ep2",
                         {.tensor_model_parallel_size = 2,
                          .pipeline_model_parallel_size = 2,
                          .expert_model_parallel_size = 2},
                         8}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(WeightsFileOnRanks, DifferencesAreNamedOnAllRanksAlike) {
  const std::string path = reference_path(DType::f32);
  std::vector<std::string> errors(2);
  run_thread_ranks(2, [&](ThreadRank& thread) {
    ParameterStore store;
    // Each stage lacks the other's tensors, which is no difference; both lack the second layer's.
    const bool last = thread.rank() == 1;
    store.add({.name = last ? "layers.00.q" : "embedding.weight",
               .global_shape = last ? Shape{8, 7} : Shape{24, 5}});
    if (last) store.add({.name = "more", .global_shape = {3}});
    CpuBackend backend(1);
    store.allocate(backend, DType::f32);
    const auto world = thread.world_group();
    try {
      load_weights(path, "", store, backend, *world);
    } catch (const UsageError& error) {
      errors[static_cast<size_t>(thread.rank())] = error.what();
    }
  });
  EXPECT_EQ(errors[0], errors[1]);
  EXPECT_THAT(errors[0], AllOf(HasSubstr("layers.00.q is [8, 6] f32, expected [8, 7]"),
                               HasSubstr("missing: more [3]"), HasSubstr("unexpected: layers.01.q"),
                               testing::Not(HasSubstr("unexpected: embedding"))));
}

TEST(WeightsFileOnRanks, MissingPartsAreNamedOnAllRanksAndNothingIsWritten) {
  const std::string folder = fresh_folder("gap");
  std::vector<std::string> errors(2);
  run_thread_ranks(2, [&](ThreadRank& thread) {
    Rank rank(thread, {}, DType::f32);
    std::vector<OptimizerShard> shards = rank.shards();
    if (thread.rank() == 1)
      std::erase_if(shards, [](const auto& s) { return s.parameter->spec.name == "layers.01.q"; });
    try {
      save_weights(folder + "/weights.h5", kInfo,
                   {rank.store, shards, rank.backend, *rank.groups.world});
    } catch (const Error& error) {
      errors[static_cast<size_t>(thread.rank())] = error.what();
    }
  });
  EXPECT_EQ(errors[0], errors[1]);
  EXPECT_THAT(errors[0], AllOf(HasSubstr("tensor layers.01.q [8, 6]"), HasSubstr("at row 4")));
  EXPECT_TRUE(std::filesystem::is_empty(folder));
}

}  // namespace
}  // namespace phalanx
