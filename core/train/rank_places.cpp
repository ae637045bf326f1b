// Names of nodes become numbers.
#include "core/train/rank_places.h"

#include <unordered_map>

#include "core/checkpoint/agreement.h"

namespace phalanx {

RankPlaces make_rank_places(const std::vector<std::string>& names, std::vector<int> stages) {
  RankPlaces places{.nodes = {}, .node = {}, .stage = std::move(stages)};
  std::unordered_map<std::string, int> numbers;
  for (const std::string& name : names) {
    const auto [entry, is_new] = numbers.emplace(name, places.num_nodes());
    if (is_new) places.nodes.push_back(name);
    places.node.push_back(entry->second);
  }
  return places;
}

RankPlaces gather_rank_places(const ProcessGroups& groups, const std::string& name) {
  ProcessGroup& world = *groups.world;
  std::vector<int32_t> stages(static_cast<size_t>(world.size()));
  const int32_t own = groups.pp->rank();
  world.all_gather(cpu_tensor(stages.data(), {world.size()}), cpu_tensor(&own, {1}));
  return make_rank_places(gather_texts(world, name), {stages.begin(), stages.end()});
}

}  // namespace phalanx
