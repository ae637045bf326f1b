// Bump allocation with a remembered peak.
#include "kernels/base/arena.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/log.h"

namespace phalanx {
namespace {

int64_t align_up(int64_t bytes) {
  return (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
}

}  // namespace

Arena::Arena(std::string name, void* block, int64_t capacity_bytes, Device device)
    : name_(std::move(name)),
      blocks_{{.data = static_cast<char*>(block), .begin = 0, .end = capacity_bytes, .owner = {}}},
      device_(device) {
  // Entries are recorded on the hot path; after the first step they never grow again.
  entries_.reserve(1024);
  peak_entries_.reserve(1024);
}

Arena Arena::measuring(std::string name, Device device) {
  Arena arena(std::move(name), nullptr, 0, device);
  arena.measuring_ = true;
  return arena;
}

Tensor Arena::tensor(std::string_view name, const Shape& shape, DType dtype) {
  const int64_t bytes = align_up(shape.numel() * dtype_bytes(dtype));
  char* data = measuring_ ? nullptr : place(bytes);
  if (data == nullptr && !measuring_ && bytes > 0) {
    if (!overflow_) throw_full(name, shape, bytes);
    add_block(bytes);
    data = place(bytes);
  }
  Tensor result{.data = data, .shape = shape, .dtype = dtype, .device = device_};
  entries_.push_back({name, used_, bytes});
  used_ += bytes;
  if (used_ > peak_) {
    peak_ = used_;
    peak_entries_.assign(entries_.begin(), entries_.end());
  }
  return result;
}

// Moves `used_` to where `bytes` fit into one block, or returns null.
char* Arena::place(int64_t bytes) {
  for (const Block& block : blocks_) {
    const int64_t begin = std::max(used_, block.begin);
    if (begin + bytes > block.end) continue;
    used_ = begin;
    return block.data + (begin - block.begin);
  }
  return nullptr;
}

// An eighth of the plan at least, because the next tensors will not fit either.
void Arena::add_block(int64_t bytes) {
  const int64_t planned = blocks_.front().end;
  const int64_t taken = align_up(std::max(bytes, planned / 8));
  if (blocks_.size() == 1)
    log_info(
        "arena '{}' needs more than the planned {} KiB (uneven routing to experts): it goes on "
        "in further blocks, the first of {} KiB",
        name_, planned >> 10, taken >> 10);
  std::shared_ptr<void> owner = overflow_(taken);
  check(owner != nullptr, "arena '", name_, "' got no further block of ", taken, " bytes");
  blocks_.push_back({.data = static_cast<char*>(owner.get()),
                     .begin = capacity(),
                     .end = capacity() + taken,
                     .owner = owner});
}

void Arena::reset_to(int64_t mark) {
  used_ = mark;
  while (!entries_.empty() && entries_.back().begin >= mark) entries_.pop_back();
}

std::vector<std::pair<std::string, int64_t>> Arena::peak_contents() const {
  std::vector<std::pair<std::string, int64_t>> contents;
  for (const Entry& entry : peak_entries_) {
    auto same = std::find_if(contents.begin(), contents.end(),
                             [&](const auto& item) { return item.first == entry.name; });
    if (same == contents.end()) {
      contents.emplace_back(entry.name, entry.bytes);
    } else {
      same->second += entry.bytes;
    }
  }
  std::stable_sort(contents.begin(), contents.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return contents;
}

void Arena::throw_full(std::string_view name, const Shape& shape, int64_t bytes) const {
  std::string neighbours;
  std::vector<Entry> largest = entries_;
  std::sort(largest.begin(), largest.end(),
            [](const Entry& a, const Entry& b) { return a.bytes > b.bytes; });
  for (size_t i = 0; i < std::min<size_t>(largest.size(), 5); ++i)
    neighbours +=
        fmt::format("{}{} ({} MiB)", i == 0 ? "" : ", ", largest[i].name, largest[i].bytes >> 20);
  fail("arena '", name_, "' is full: tensor '", name, "' ", shape.to_string(), " needs ", bytes,
       " bytes, ", capacity() - used_, " of ", capacity(),
       " are free; largest in it: ", neighbours.empty() ? "nothing" : neighbours,
       ". Use a smaller micro-batch-size or more activation recompute");
}

}  // namespace phalanx
