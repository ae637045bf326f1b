// Every collective of a process group against its definition. Throws on the first difference, so
// that thread ranks and MPI ranks run the same checks. Values are small integers, whose sums every
// dtype holds exactly: all comparisons are exact.
#pragma once

#include <vector>

#include "tests/parallel/group_values.h"

namespace phalanx::test {

template <class T>
void check_all_reduce(ProcessGroup& group) {
  for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max}) {
    for (const int64_t count : {0, 1, 3, 17, 1025}) {
      std::vector<T> x = values_of<T>(group.rank(), count);
      group.all_reduce(flat(x), op);
      for (int64_t i = 0; i < count; ++i)
        expect_equal(static_cast<double>(x[static_cast<size_t>(i)]),
                     static_cast<double>(reduced_value<T>(group.size(), i, op)), group,
                     "all_reduce", i);
    }
  }
}

template <class T>
void check_gathered(const ProcessGroup& group, const std::vector<T>& out,
                    const std::vector<int64_t>& counts) {
  for (int rank = 0; rank < group.size(); ++rank)
    for (int64_t i = 0; i < counts[static_cast<size_t>(rank)]; ++i)
      expect_equal(static_cast<double>(out[static_cast<size_t>(begin_of(counts, rank) + i)]),
                   static_cast<double>(value_at<T>(rank, i)), group, "all_gather", i);
}

template <class T>
std::vector<T> own_piece_only(const ProcessGroup& group, const std::vector<int64_t>& counts) {
  std::vector<T> out(static_cast<size_t>(begin_of(counts, group.size())));
  const int64_t begin = begin_of(counts, group.rank());
  for (int64_t i = 0; i < counts[static_cast<size_t>(group.rank())]; ++i)
    out[static_cast<size_t>(begin + i)] = value_at<T>(group.rank(), i);
  return out;
}

template <class T>
void check_all_gather(ProcessGroup& group) {
  for (const int64_t rows : {0, 1, 5}) {
    std::vector<T> x = values_of<T>(group.rank(), rows * 3);
    std::vector<T> out(static_cast<size_t>(rows * 3 * group.size()));
    group.all_gather(cpu_tensor(out.data(), {rows * group.size(), 3}),
                     cpu_tensor(x.data(), {rows, 3}));
    check_gathered(group, out, std::vector<int64_t>(static_cast<size_t>(group.size()), rows * 3));
  }
  for (int variant = 0; variant < 7; variant += 2) {
    const std::vector<int64_t> counts = uneven_counts(group.size(), variant);
    std::vector<T> out = own_piece_only<T>(group, counts);
    group.all_gather_in_place(flat(out), counts);
    check_gathered(group, out, counts);
    std::vector<T> later = own_piece_only<T>(group, counts);
    group.all_gather_in_place_async(flat(later), counts)->wait();
    check_gathered(group, later, counts);
  }
}

template <class T>
void check_scattered(const ProcessGroup& group, const T* piece,
                     const std::vector<int64_t>& counts) {
  const int64_t begin = begin_of(counts, group.rank());
  for (int64_t i = 0; i < counts[static_cast<size_t>(group.rank())]; ++i)
    expect_equal(static_cast<double>(piece[i]),
                 static_cast<double>(reduced_value<T>(group.size(), begin + i, ReduceOp::sum)),
                 group, "reduce_scatter", i);
}

template <class T>
void check_reduce_scatter(ProcessGroup& group) {
  for (const int64_t rows : {0, 1, 5, 64}) {
    std::vector<T> x = values_of<T>(group.rank(), rows * 3 * group.size());
    std::vector<T> out(static_cast<size_t>(rows * 3));
    group.reduce_scatter(cpu_tensor(out.data(), {rows, 3}),
                         cpu_tensor(x.data(), {rows * group.size(), 3}));
    check_scattered(group, out.data(),
                    std::vector<int64_t>(static_cast<size_t>(group.size()), rows * 3));
  }
  for (int variant = 0; variant < 7; variant += 2) {
    const std::vector<int64_t> counts = uneven_counts(group.size(), variant);
    std::vector<T> x = values_of<T>(group.rank(), begin_of(counts, group.size()));
    group.reduce_scatter_in_place(flat(x), counts);
    check_scattered(group, x.data() + begin_of(counts, group.rank()), counts);
  }
}

/// Several asynchronous reductions at once, with ordinary collectives between start and wait.
void check_async(ProcessGroup& group);
/// Rows to every rank, as many as its rank and ours say.
void check_all_to_all(ProcessGroup& group);
void check_broadcast(ProcessGroup& group);
/// Two messages to the next rank, one back from it, one to oneself.
void check_exchange(ProcessGroup& group);
/// Messages on several channels, sent and awaited in different orders, with collectives between.
void check_channels(ProcessGroup& group);
/// Asynchronous messages around the ring until everyone has its own again.
void check_ring(ProcessGroup& group);
/// Messages between pairs, in different numbers.
void check_pairs(ProcessGroup& group);
/// Time inside collectives is counted, time outside is not.
void check_waiting_time(ProcessGroup& group);
/// Everything above and below, for all dtypes.
void check_all_collectives(ProcessGroup& group);

}  // namespace phalanx::test
