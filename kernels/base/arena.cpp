// Bump allocation with a remembered peak.
#include "kernels/base/arena.h"

#include <algorithm>

namespace phalanx {
namespace {

int64_t align_up(int64_t bytes) {
  return (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
}

}  // namespace

Arena::Arena(std::string name, void* block, int64_t capacity_bytes, Device device)
    : name_(std::move(name)),
      block_(static_cast<char*>(block)),
      capacity_(capacity_bytes),
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
  if (!measuring_ && used_ + bytes > capacity_) throw_full(name, shape, bytes);
  Tensor result{.data = measuring_ ? nullptr : block_ + used_,
                .shape = shape,
                .dtype = dtype,
                .device = device_};
  entries_.push_back({name, used_, bytes});
  used_ += bytes;
  if (used_ > peak_) {
    peak_ = used_;
    peak_entries_.assign(entries_.begin(), entries_.end());
  }
  return result;
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
       " bytes, ", capacity_ - used_, " of ", capacity_,
       " are free; largest in it: ", neighbours.empty() ? "nothing" : neighbours,
       ". Use a smaller micro-batch-size or more activation recompute");
}

}  // namespace phalanx
