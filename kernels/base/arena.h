// Arena: named bump allocation over one block of memory, with a peak that remembers who was in it.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/tensor.h"

namespace phalanx {

/// Hands out tensors from a block it does not own, in stack order: `ArenaScope` gives back all that
/// was taken since. A *measuring* arena has no block: it hands out tensors without memory (data is
/// null) and only counts, so one step against it and a null backend tells the peak before any
/// memory is taken. One thread at a time.
class Arena {
 public:
  static constexpr int64_t kAlignment = 256;  // covers AVX-512 lines, huge TLB strides, cuBLASLt

  /// An arena over `block` of `capacity_bytes`, e.g. from `Backend::allocate`.
  Arena(std::string name, void* block, int64_t capacity_bytes, Device device);
  /// A measuring arena.
  static Arena measuring(std::string name, Device device);

  /// Where further blocks come from when the planned one is full, because experts may get more rows
  /// than planned. Each is kept as long as the arena; the first is told to the log.
  using BlockSource = std::function<std::shared_ptr<void>(int64_t bytes)>;
  void set_overflow(BlockSource source) { overflow_ = std::move(source); }

  /// A tensor named `name` for messages. Throws when the block is full: the text names tensor,
  /// shape, arena and the largest neighbours; with an overflow source it takes another block.
  Tensor tensor(std::string_view name, const Shape& shape, DType dtype);

  const std::string& name() const { return name_; }
  bool is_measuring() const { return measuring_; }
  int64_t used_bytes() const { return used_; }
  int64_t peak_bytes() const { return peak_; }
  /// Bytes of blocks taken beyond the planned one.
  int64_t overflow_bytes() const { return capacity() - blocks_.front().end; }
  /// Names and bytes of what was alive when the peak was reached, largest first.
  std::vector<std::pair<std::string, int64_t>> peak_contents() const;

  /// Position for `reset_to`; see ArenaScope.
  int64_t mark() const { return used_; }
  void reset_to(int64_t mark);
  void clear() { reset_to(0); }

 private:
  struct Entry {
    std::string_view name;  // callers pass literals or names that outlive the arena
    int64_t begin;
    int64_t bytes;
  };
  /// Positions [begin, end) of the arena. Blocks follow each other; a tensor lies in one of them.
  struct Block {
    char* data;
    int64_t begin;
    int64_t end;
    std::shared_ptr<void> owner;  // null for the first block, which the arena does not own
  };
  int64_t capacity() const { return blocks_.back().end; }
  char* place(int64_t bytes);
  void add_block(int64_t bytes);
  [[noreturn]] void throw_full(std::string_view name, const Shape& shape, int64_t bytes) const;

  std::string name_;
  std::vector<Block> blocks_;
  BlockSource overflow_;
  Device device_;
  bool measuring_ = false;
  int64_t used_ = 0;
  int64_t peak_ = 0;
  std::vector<Entry> entries_;
  std::vector<Entry> peak_entries_;
};

/// Gives back, when it goes out of scope, whatever was taken from `arena` after it was made.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.reset_to(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  int64_t mark_;
};

/// Work that a backward leaves for later, in order: the weight-gradient halves of a split backward
/// (zero-bubble pipelines). What it reads must live in the saved arena.
using DeferredWork = std::vector<std::function<void(Arena& scratch)>>;

/// What a layer is handed: `saved` lives until the layer's backward, `scratch` until the enclosing
/// ArenaScope ends.
struct Memory {
  Arena& saved;
  Arena& scratch;
  DeferredWork* deferred = nullptr;  // where weight gradients wait; null: computed at once
};

}  // namespace phalanx
