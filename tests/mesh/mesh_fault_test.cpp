// The comparison with one rank can fail: for each quantity, a fault that is found in it.
#include <gmock/gmock.h>

#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/mesh/faulty_process_group.h"
#include "tests/mesh/mesh_case.h"

namespace phalanx::test {
namespace {

using Fault = FaultyProcessGroup::Fault;

/// A fault in one kind of collective of one group.
struct FaultCase {
  const char* name;
  const char* mesh;
  const char* expected;  // begin of the quantity that is found
  std::unique_ptr<ProcessGroup> ProcessGroups::*group;
  Collective operation;
  bool (*concerns)(const Tensor& x);
  Fault fault = Fault::skipped;
  int only_rank = -1;  // of the world; -1: all
  int64_t after = 0;   // calls that still go right
};
void PrintTo(const FaultCase& item, std::ostream* out) {
  *out << item.name;
}

bool any(const Tensor&) {
  return true;
}
bool is_scalar(const Tensor& x) {
  return x.numel() == 1 && x.dtype == DType::f64;
}
bool is_loss_sums(const Tensor& x) {
  return x.numel() == 4 && x.dtype == DType::f64;
}
/// A gradient of a norm of heads, which is reduced over tp.
bool is_norm_gradient(const Tensor& x) {
  return x.shape == Shape{4};
}

class MeshFault : public testing::TestWithParam<FaultCase> {};

TEST_P(MeshFault, IsFoundOnAllRanks) {
  const FaultCase& item = GetParam();
  const MeshCase mesh(item.mesh);
  std::vector<std::string> found(static_cast<size_t>(mesh.world_size));
  run_thread_ranks(static_cast<int>(mesh.world_size), [&](ThreadRank& rank) {
    CpuBackend backend(1);
    ProcessGroups groups = rank.process_groups(DeviceMesh(mesh.layout.parallel, rank.size()));
    const bool faulty = item.only_rank < 0 || item.only_rank == rank.rank();
    auto& group = groups.*item.group;
    group = std::make_unique<FaultyProcessGroup>(
        std::move(group),
        [&item, faulty, calls = int64_t{0}](Collective operation, const Tensor& x) mutable {
          if (!faulty || operation != item.operation || !item.concerns(x)) return Fault::none;
          return calls++ < item.after ? Fault::none : item.fault;
        });
    const auto differences = compare_with_one_rank(mesh.layout, backend, groups);
    if (!differences.empty()) found[static_cast<size_t>(rank.rank())] = differences.front().what;
  });
  for (const std::string& what : found) EXPECT_THAT(what, testing::StartsWith(item.expected));
}

INSTANTIATE_TEST_SUITE_P(
    Quantities, MeshFault,
    testing::Values(
        FaultCase{"loss_not_summed", "cswa2: dp2", "loss", &ProcessGroups::world,
                  Collective::all_reduce, is_loss_sums},
        FaultCase{"loss_wrong_on_one_rank", "cswa2: dp2", "loss", &ProcessGroups::world,
                  Collective::all_reduce, is_loss_sums, Fault::changed, 1},
        FaultCase{"activations_not_summed", "cswa2: tp2", "loss", &ProcessGroups::tp,
                  Collective::all_reduce, any},
        FaultCase{"keys_not_exchanged", "cswa2: cp2", "loss", &ProcessGroups::cp,
                  Collective::exchange, any},
        FaultCase{"gradients_not_summed", "cswa2: dp2", "gradient of embedding",
                  &ProcessGroups::dp_cp, Collective::reduce_scatter, any},
        FaultCase{"norm_gradients_not_summed", "cswa2: tp2 sp",
                  "gradient of layers.00.attention.q_norm", &ProcessGroups::tp,
                  Collective::all_reduce, is_norm_gradient},
        FaultCase{"expert_gradients_not_summed", "moe: dp4 ep2",
                  "gradient of layers.00.mlp.experts", &ProcessGroups::expert_dp,
                  Collective::reduce_scatter, any},
        FaultCase{"gradient_wrong_on_one_rank", "cswa2: dp2 tp2", "gradient of ",
                  &ProcessGroups::dp_cp, Collective::reduce_scatter, any, Fault::changed, 0},
        FaultCase{"norm_not_summed", "cswa2: dp2", "gradient norm", &ProcessGroups::world,
                  Collective::all_reduce, is_scalar, Fault::skipped},
        FaultCase{"norm_wrong_on_one_rank", "cswa2: dp2", "gradient norm", &ProcessGroups::world,
                  Collective::all_reduce, is_scalar, Fault::changed, 1},
        FaultCase{"weight_wrong_on_one_rank", "cswa2: dp2", "weights of ", &ProcessGroups::dp_cp,
                  Collective::all_gather, any, Fault::changed, 0, 10},
        FaultCase{"weights_not_gathered", "cswa2: dp2", "loss", &ProcessGroups::dp_cp,
                  Collective::all_gather, any, Fault::skipped, -1, 10}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace phalanx::test
