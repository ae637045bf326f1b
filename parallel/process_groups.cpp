// Which mesh axes each named group spans, and the groups that talk to nobody.
#include "parallel/process_groups.h"

#include <algorithm>

namespace phalanx {
namespace {

/// Communicates nothing: right for a group of one, and for measuring, where nothing is computed.
class SilentProcessGroup final : public ProcessGroup {
 public:
  using ProcessGroup::ProcessGroup;

 private:
  using Counts = std::span<const int64_t>;

  void all_reduce_impl(const Tensor&, ReduceOp) override {}
  void all_gather_impl(const Tensor&, Counts) override {}
  void reduce_scatter_impl(const Tensor&, Counts) override {}
  void all_to_all_impl(const Tensor&, const Tensor&, Counts, Counts) override {}
  void broadcast_impl(const Tensor&, int) override {}
  void barrier_impl() override {}
  PendingWork reduce_scatter_async_impl(const Tensor&, Counts) override { return completed_work(); }
  PendingWork all_gather_async_impl(const Tensor&, Counts) override { return completed_work(); }
  PendingWork exchange_async_impl(std::span<const Exchange>) override { return completed_work(); }
};

}  // namespace

ProcessGroups make_process_groups(const DeviceMesh& mesh, int64_t rank,
                                  const GroupFactory& make_group) {
  const auto group = [&](const std::string& name, const std::vector<MeshAxis>& axes) {
    return make_group(name, mesh.group_of(rank, axes));
  };
  using enum MeshAxis;
  ProcessGroups groups;
  groups.world = group("world", {pp, dp, cp, tp});
  groups.tp = group("tp", {tp});
  groups.cp = group("cp", {cp});
  groups.dp = group("dp", {dp});
  groups.dp_cp = group("dp_cp", {dp, cp});
  groups.pp = group("pp", {pp});
  groups.ep = group("ep", {ep});
  groups.expert_tp = group("expert_tp", {expert_tp});
  groups.expert_dp = group("expert_dp", {expert_dp});
  return groups;
}

ProcessGroups make_measuring_process_groups(const DeviceMesh& mesh, int64_t rank) {
  return make_process_groups(
      mesh, rank, [&](const std::string& name, const std::vector<int64_t>& ranks) {
        const auto place = std::find(ranks.begin(), ranks.end(), rank) - ranks.begin();
        return std::make_unique<SilentProcessGroup>(name, static_cast<int>(place),
                                                    static_cast<int>(ranks.size()));
      });
}

ProcessGroups make_measuring_process_groups(const ProcessGroups& groups) {
  const auto silent = [](const std::unique_ptr<ProcessGroup>& group) {
    return std::make_unique<SilentProcessGroup>(group->name(), group->rank(), group->size());
  };
  return {.world = silent(groups.world),
          .tp = silent(groups.tp),
          .cp = silent(groups.cp),
          .dp = silent(groups.dp),
          .dp_cp = silent(groups.dp_cp),
          .pp = silent(groups.pp),
          .ep = silent(groups.ep),
          .expert_tp = silent(groups.expert_tp),
          .expert_dp = silent(groups.expert_dp)};
}

ProcessGroups make_single_process_groups(Backend* device_ops) {
  return make_process_groups(DeviceMesh(ParallelConfig{}, 1), 0,
                             [&](const std::string& name, const std::vector<int64_t>&) {
                               return std::make_unique<SilentProcessGroup>(name, 0, 1, device_ops);
                             });
}

}  // namespace phalanx
