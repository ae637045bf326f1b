// Differences between the counters of groups.
#include "core/train/communication_log.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace phalanx {
namespace {

GroupTraffic total_of(const ProcessGroup& group) {
  GroupTraffic total{.name = group.name(), .wait_seconds = group.waiting_seconds()};
  for (size_t i = 0; i < total.traffic.size(); ++i)
    total.traffic[i] = group.traffic(static_cast<Collective>(i));
  return total;
}

std::string group_json(const GroupTraffic& group) {
  std::vector<std::string> fields;
  for (size_t i = 0; i < group.traffic.size(); ++i)
    if (group.traffic[i].calls > 0)
      fields.push_back(fmt::format(R"("{}": {{"calls": {}, "bytes": {}}})",
                                   collective_name(static_cast<Collective>(i)),
                                   group.traffic[i].calls, group.traffic[i].bytes));
  fields.push_back(fmt::format(R"("wait_seconds": {:.6f})", group.wait_seconds));
  return fmt::format("{{{}}}", fmt::join(fields, ", "));
}

}  // namespace

CommunicationLog::CommunicationLog(const ProcessGroups& groups) {
  for (const auto* group : {&groups.tp, &groups.cp, &groups.dp, &groups.dp_cp, &groups.pp,
                            &groups.ep, &groups.expert_tp, &groups.expert_dp, &groups.world})
    if ((*group)->size() > 1) groups_.push_back(group->get());
  for (const ProcessGroup* group : groups_) before_.push_back(total_of(*group));
  taken_ = before_;
}

const std::vector<GroupTraffic>& CommunicationLog::take() {
  for (size_t i = 0; i < groups_.size(); ++i) {
    const GroupTraffic now = total_of(*groups_[i]);
    taken_[i].wait_seconds = now.wait_seconds - before_[i].wait_seconds;
    for (size_t j = 0; j < now.traffic.size(); ++j) {
      taken_[i].traffic[j].calls = now.traffic[j].calls - before_[i].traffic[j].calls;
      taken_[i].traffic[j].bytes = now.traffic[j].bytes - before_[i].traffic[j].bytes;
    }
    before_[i] = now;
  }
  return taken_;
}

std::string communication_json(const std::vector<GroupTraffic>& groups) {
  std::vector<std::string> fields;
  for (const GroupTraffic& group : groups)
    fields.push_back(fmt::format(R"("{}": {})", group.name, group_json(group)));
  return fmt::format("{{{}}}", fmt::join(fields, ", "));
}

}  // namespace phalanx
