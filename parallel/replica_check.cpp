// Hashes, their comparison by one all-reduce, and the search for the odd rank.
#include "parallel/replica_check.h"

#include <fmt/format.h>

#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>

namespace phalanx {
namespace {

constexpr int64_t kPieceBytes = int64_t{4} << 20;
constexpr size_t kMostReported = 16;
constexpr int64_t kNothing = std::numeric_limits<int64_t>::min();  // changes no maximum

constexpr size_t kHostBytes = 64;
using Host = std::array<uint8_t, kHostBytes>;

/// This machine's name, cut to what fits.
Host host_name() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  Host host{};
  std::copy_n(name.begin(), kHostBytes - 1, host.begin());
  return host;
}

struct Copy {
  int rank;
  int64_t hash;
};

/// The ranks whose hash is not that of more than half; all if there is no such hash.
std::vector<int> odd_ranks(const std::vector<Copy>& copies) {
  std::map<int64_t, size_t> votes;
  for (const Copy& copy : copies) ++votes[copy.hash];
  std::vector<int> odd;
  for (const Copy& copy : copies)
    if (2 * votes[copy.hash] <= copies.size()) odd.push_back(copy.rank);
  return odd;
}

}  // namespace

std::vector<HeldWeight> held_weights(const ParameterStore& store,
                                     const std::vector<OptimizerShard>& shards) {
  std::vector<HeldWeight> held;
  for (int64_t i = 0; i < store.size(); ++i)
    if (store[i].value.data != nullptr)
      held.push_back({piece_of(store[i], 0, store[i].matrix_shape()[0]), store[i].value});
  for (const OptimizerShard& shard : shards)
    if (shard.parameter->value.data == nullptr)
      held.push_back({piece_of(*shard.parameter, shard.row_begin, shard.row_end), shard.weights});
  return held;
}

ReplicaCheck::ReplicaCheck(std::vector<HeldWeight> weights, Backend& backend, ProcessGroup& world)
    : weights_(std::move(weights)), ops_(backend), world_(world), table_(own_pieces(), world) {
  for (size_t i = 0; i < table_.entries().size(); ++i)
    if (table_.has_replicas(table_.entries()[i])) replicated_.push_back(i);
  for (const Piece& piece : own_pieces()) {
    const auto entry = static_cast<size_t>(table_.find(piece));
    const auto place = std::lower_bound(replicated_.begin(), replicated_.end(), entry);
    const bool found = place != replicated_.end() && *place == entry;
    slot_.push_back(found ? place - replicated_.begin() : -1);
  }
  hashes_.resize(replicated_.size());
  extremes_.resize(2 * replicated_.size());
}

std::vector<Piece> ReplicaCheck::own_pieces() const {
  std::vector<Piece> pieces;
  for (const HeldWeight& weight : weights_) pieces.push_back(weight.piece);
  return pieces;
}

uint64_t ReplicaCheck::hash_of(const Tensor& value) {
  const Tensor flat = value.view({value.numel()});
  const int64_t step = kPieceBytes / dtype_bytes(value.dtype);
  uint64_t hash = 0;
  for (int64_t begin = 0; begin < flat.numel(); begin += step) {
    const Tensor piece = flat.slice(begin, std::min(begin + step, flat.numel()));
    host_.resize(static_cast<size_t>(std::max<int64_t>(piece.bytes(), std::ssize(host_))));
    ops_.download(host_.data(), piece);
    hash = XXH3_64bits_withSeed(host_.data(), static_cast<size_t>(piece.bytes()), hash);
  }
  return hash;
}

// Copies are equal exactly if the greatest and the least hash are; the least is the complement of
// the greatest complement, so that both come from one maximum. Ranks without a copy stay out of it.
void ReplicaCheck::run() {
  if (replicated_.empty()) return;  // the same on every rank
  std::fill(extremes_.begin(), extremes_.end(), kNothing);
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (slot_[i] < 0) continue;
    const auto place = static_cast<size_t>(slot_[i]);
    hashes_[place] = static_cast<int64_t>(hash_of(weights_[i].value));
    extremes_[2 * place] = hashes_[place];
    extremes_[2 * place + 1] = ~hashes_[place];
  }
  world_.all_reduce(cpu_tensor(extremes_.data(), {std::ssize(extremes_)}), ReduceOp::max);
  std::vector<size_t> different;
  for (size_t slot = 0; slot < replicated_.size(); ++slot)
    if (extremes_[2 * slot] != ~extremes_[2 * slot + 1]) different.push_back(slot);
  if (!different.empty()) report(different);
}

void ReplicaCheck::report(const std::vector<size_t>& different) {
  const size_t num_shown = std::min(different.size(), kMostReported);
  const auto num_ranks = static_cast<size_t>(world_.size());
  std::vector<int64_t> own;
  for (size_t i = 0; i < num_shown; ++i) own.push_back(hashes_[different[i]]);
  std::vector<int64_t> hashes(num_ranks * num_shown);
  world_.all_gather(cpu_tensor(hashes.data(), {std::ssize(hashes)}),
                    cpu_tensor(own.data(), {std::ssize(own)}));
  const Host own_host = host_name();
  std::vector<Host> hosts(num_ranks);
  world_.all_gather(cpu_tensor(hosts.front().data(), {std::ssize(hosts), std::ssize(own_host)}),
                    cpu_tensor(own_host.data(), {1, std::ssize(own_host)}));

  std::string text =
      fmt::format("{} of {} replicated weights differ between their copies:", different.size(),
                  replicated_.size());
  for (size_t i = 0; i < num_shown; ++i) {
    const PieceTable::Entry& entry = table_.entries()[replicated_[different[i]]];
    std::vector<Copy> copies;
    for (const int rank : table_.holders(entry))
      copies.push_back({rank, hashes[static_cast<size_t>(rank) * num_shown + i]});
    const std::vector<int> odd = odd_ranks(copies);
    text += fmt::format("\n  {} rows {}+{} columns {}+{}, {} copies, {}:", entry.piece.name,
                        entry.piece.offset[0], entry.piece.size[0], entry.piece.offset[1],
                        entry.piece.size[1], copies.size(),
                        odd.size() == copies.size() ? "no majority" : "odd");
    for (const int rank : odd)
      text += fmt::format(" rank {} (host {})", rank,
                          reinterpret_cast<const char*>(hosts[static_cast<size_t>(rank)].data()));
  }
  if (num_shown < different.size())
    text += fmt::format("\n  and {} more", different.size() - num_shown);
  fail(text,
       "\nThe run stops so that no checkpoint is written from them: restart from the last one; if "
       "one host is named again, test its memory and leave it out");
}

}  // namespace phalanx
