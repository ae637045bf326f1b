// wgmma: products of a warpgroup that run beside its threads. Each thread goes on after it issued
// one; its accumulators hold NaN until it waits, when the sums appear. From the PTX ISA,
// "Asynchronous Warpgroup Level Matrix Instructions": mma_async, fence, commit_group, wait_group.
//
// Operands in shared memory are read when the last thread has issued, the earliest moment, and
// again at the first wait, the latest: if they differ, the kernel wrote too early.
#pragma once

#include <array>
#include <deque>
#include <set>
#include <vector>

#include "tests/cuda_emulator/hopper_product.h"
#include "tests/cuda_emulator/scheduler.h"

namespace phalanx::emulator {

/// A thread's part of a product.
struct ProductCall {
  ProductTerms terms;
  const uint32_t* a = nullptr;  // 4 pairs of bf16 if A is in registers
  float* d = nullptr;           // columns / 2 accumulators
};

/// The products of four warps. `thread` counts within the warpgroup.
class Warpgroup {
 public:
  void fence(int thread);
  void issue(int thread, const ProductCall& call, const Site& site);
  void commit(int thread);
  void wait(int thread, int pending, const Site& site);
  bool has_products_under_way() const { return !products_.empty(); }

 private:
  static constexpr int kThreads = 128;
  static constexpr int64_t kNone = -1;

  struct Product {
    Site site;
    ProductTerms terms;
    int64_t chained_to = kNone;  // the product whose sums this one goes on with
    int issued = 0;              // threads that have
    int retired = 0;
    bool done = false;
    std::vector<uint16_t> a;
    std::vector<uint16_t> b;
    std::vector<float> sums;  // [64, columns]
  };
  /// Registers that products under way write.
  struct Accumulators {
    float* d = nullptr;
    int count = 0;
    int64_t last_product = kNone;
  };
  struct ThreadState {
    int64_t issued = 0;
    int64_t retired = 0;
    std::vector<int64_t> group_ends;  // oldest first
    std::vector<Accumulators> under_way;
    std::set<const float*> used;  // accumulators of earlier products
    int fences = 0;
    int fences_at_retirement = 0;
  };

  Product& product(int64_t number) { return products_[static_cast<size_t>(number - first_)]; }
  Product& next_product(int thread, const ProductCall& call, const Site& site);
  int64_t claim_accumulators(int thread, const ProductCall& call, int64_t number, const Site& site);
  void check_fence(const ThreadState& state, const ProductCall& call, bool chained,
                   const Site& site) const;
  void compute(int64_t number, const Site& site);
  void retire(int thread, int64_t end, const Site& site);

  std::deque<Product> products_;
  int64_t first_ = 0;  // number of products_.front()
  std::array<ThreadState, kThreads> threads_;
};

/// The instructions, by a thread of the running block.
void fence_products(const Site& site);
void issue_product(const ProductCall& call, const Site& site);
void commit_products(const Site& site);
void wait_for_products(int pending, const Site& site);

}  // namespace phalanx::emulator
