// Texts as bytes in all-gathers.
#include "core/checkpoint/agreement.h"

#include <algorithm>

#include "core/checkpoint/manifest.h"

namespace phalanx {

std::string broadcast_text(ProcessGroup& group, const std::string& text) {
  const bool sends = group.rank() == 0;
  const int64_t size = group.all_reduce(sends ? std::ssize(text) : int64_t{0}, ReduceOp::max);
  std::string result = sends ? text : std::string(static_cast<size_t>(size), '\0');
  if (size > 0) group.broadcast(cpu_tensor(reinterpret_cast<uint8_t*>(result.data()), {size}), 0);
  return result;
}

std::vector<std::string> gather_texts(ProcessGroup& group, const std::string& text) {
  const auto num_ranks = static_cast<size_t>(group.size());
  std::vector<int64_t> sizes(num_ranks);
  const int64_t own = std::ssize(text);
  group.all_gather(cpu_tensor(sizes.data(), {group.size()}), cpu_tensor(&own, {1}));
  std::string all;
  for (size_t rank = 0; rank < num_ranks; ++rank)
    all += static_cast<int>(rank) == group.rank()
               ? text
               : std::string(static_cast<size_t>(sizes[rank]), ' ');
  group.all_gather_in_place(cpu_tensor(reinterpret_cast<uint8_t*>(all.data()), {std::ssize(all)}),
                            sizes);
  std::vector<std::string> texts;
  size_t at = 0;
  for (const int64_t size : sizes) {
    texts.push_back(all.substr(at, static_cast<size_t>(size)));
    at += static_cast<size_t>(size);
  }
  return texts;
}

void agree_intact(ProcessGroup& group, const std::string& problem) {
  if (group.all_reduce(int64_t{problem.empty() ? 0 : 1}, ReduceOp::max) == 0) return;
  const std::vector<std::string> problems = gather_texts(group, problem);
  throw CheckpointDamage(
      *std::find_if(problems.begin(), problems.end(), [](const auto& p) { return !p.empty(); }));
}

// In halves, because sums of 64 bits would leave the range of the groups' integers.
void sum_digests(ProcessGroup& group, std::vector<uint64_t>& digests) {
  std::vector<int64_t> halves;
  halves.reserve(2 * digests.size());
  for (const uint64_t digest : digests) {
    halves.push_back(static_cast<int64_t>(digest & 0xFFFFFFFFU));
    halves.push_back(static_cast<int64_t>(digest >> 32));
  }
  group.all_reduce(cpu_tensor(halves.data(), {std::ssize(halves)}), ReduceOp::sum);
  for (size_t i = 0; i < digests.size(); ++i)
    digests[i] =
        static_cast<uint64_t>(halves[2 * i]) + (static_cast<uint64_t>(halves[2 * i + 1]) << 32);
}

}  // namespace phalanx
