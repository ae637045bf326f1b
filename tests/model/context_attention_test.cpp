// Context-parallel attention: ranks equal one rank, the bytes that travel, and how even the work
// is.
#include "core/model/context_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/make_backend.h"
#include "kernels/null_backend.h"
#include "parallel/context_parallel.h"
#include "parallel/thread_process_group.h"

namespace phalanx::testing {
namespace {

constexpr int64_t kEndless = AttentionMask::kNoChunk;
using Ranges = std::vector<PositionRange>;

AttentionMask phd(int64_t copies, int64_t window = 1, int64_t chunk = kEndless,
                  WindowUnit unit = WindowUnit::positions) {
  return {.copies = copies, .window = window, .chunk = chunk, .unit = unit};
}
AttentionMask naive(int64_t copies) {
  return {.copies = copies, .visibility = CopyVisibility::naive};
}
AttentionMask sink_window(int64_t copies, int64_t block) {
  return {.copies = copies,
          .window = 3,
          .pattern = KeyPattern::sink_window,
          .block = block,
          .sink_blocks = 1,
          .window_blocks = 2};
}
AttentionMask strided(int64_t copies, int64_t block) {
  return {.copies = copies,
          .pattern = KeyPattern::strided,
          .block = block,
          .stride_blocks = 3,
          .local_blocks = 1};
}

struct Named {
  const char* name;
  AttentionMask mask;
};
const std::vector<Named> kMasks = {
    {"causal", phd(1)},
    {"naive-2", naive(2)},
    {"PHD-2", phd(2)},
    {"PHD-3", phd(3)},
    {"SWA-3", phd(3, 5)},
    {"SWA-2, wider than a piece", phd(2, 40)},
    {"CSWA-2 aligned", phd(2, 4, 6)},
    {"CSWA-2 misaligned", phd(2, 4, 7)},
    {"CSWA-3 of hidden tokens", phd(3, 5, 7, WindowUnit::hidden_tokens)},
    {"SWA-4 of hidden tokens", phd(4, 8, kEndless, WindowUnit::hidden_tokens)},
    {"sink and window", sink_window(2, 6)},
    {"sink and window, misaligned", sink_window(2, 5)},
    {"strided", strided(2, 6)},
    {"strided, misaligned", strided(1, 4)}};

// --- ranks equal one rank ---

/// Memory of its own; a piece of the whole tensor by positions (dim -2).
class Values {
 public:
  Values(const Shape& shape, DType dtype)
      : bytes_(static_cast<size_t>(shape.numel() * dtype_bytes(dtype))),
        tensor_{bytes_.data(), shape, dtype, Device::cpu} {}
  Values(const Shape& shape, DType dtype, uint64_t seed) : Values(shape, dtype) {
    std::mt19937_64 engine(seed);
    std::normal_distribution<float> normal;
    dispatch_float(dtype, [&]<class T>() {
      for (int64_t i = 0; i < shape.numel(); ++i) tensor_.as<T>()[i] = T(normal(engine));
    });
  }
  const Tensor& operator()() const { return tensor_; }

 private:
  std::vector<char> bytes_;
  Tensor tensor_;
};

/// S = 48 positions: pieces of 24, 12, 8 and 6 positions for 1, 2, 3 and 4 ranks.
struct Problem {
  static constexpr int64_t kS = 48, kB = 2, kG = 2, kR = 2, kD = 8;
  AttentionMask mask;
  int64_t query_copies;
  bool documents;
  DType dtype;

  int64_t per_position() const { return query_copies * kR; }
  Shape query_shape(int64_t s) const { return {kB, kG, s, per_position(), kD}; }
  Shape key_shape(int64_t s) const { return {mask.copies, kB, kG, s, kD}; }
  Shape out_shape(int64_t s) const { return {s, kB, query_copies, kG * kR * kD}; }
  Shape lse_shape(int64_t s) const { return {kB, kG, s, per_position()}; }
  // The same with positions as the last dim but one.
  Shape query_rows(int64_t s) const { return {kB, kG, s, per_position() * kD}; }
  Shape out_rows(int64_t s) const { return {s, kB * query_copies * kG * kR * kD}; }
};

struct Operands {
  Values q, k, v, dout, out, lse, dq, dk, dv;
  /// Results are of type `result`.
  Operands(const Problem& p, int64_t s, DType result)
      : q(p.query_shape(s), p.dtype, 1),
        k(p.key_shape(s), p.dtype, 2),
        v(p.key_shape(s), p.dtype, 3),
        dout(p.out_shape(s), p.dtype, 4),
        out(p.out_shape(s), result),
        lse(p.lse_shape(s), accumulator_dtype(p.dtype)),
        dq(p.query_shape(s), result),
        dk(p.key_shape(s), result),
        dv(p.key_shape(s), result) {}
};

int32_t document_of(int64_t sequence, int64_t position) {
  const int64_t length = sequence == 0 ? 31 : 11;
  return static_cast<int32_t>(position / length * length);
}

/// The rank's positions of whole operands, attended by the group; results go to `whole`, whose
/// results are in the accumulator type.
void attend(const Problem& p, Operands& whole, Backend* ops, ProcessGroup& cp, Arena& scratch) {
  const Ranges own = context_positions(Problem::kS, cp.rank(), cp.size());
  const int64_t s = Problem::kS / cp.size();
  Operands local(p, s, p.dtype);
  ops->gather_positions(local.q().view(p.query_rows(s)), whole.q().view(p.query_rows(Problem::kS)),
                        own);
  ops->gather_positions(local.k(), whole.k(), own);
  ops->gather_positions(local.v(), whole.v(), own);
  ops->gather_positions(local.dout().view(p.out_rows(s)),
                        whole.dout().view(p.out_rows(Problem::kS)), own);
  std::vector<int32_t> documents;
  for (int64_t sequence = 0; sequence < Problem::kB; ++sequence)
    for (const PositionRange& range : own)
      for (int64_t n = range.begin; n < range.end; ++n)
        documents.push_back(document_of(sequence, n));

  const ContextAttention attention(*ops, cp, p.mask);
  AttentionInputs inputs{.q = local.q(),
                         .k = local.k(),
                         .v = local.v(),
                         .scale = 0.3,
                         .query_copies = p.query_copies,
                         .first_query_copy = p.mask.copies - p.query_copies};
  if (p.documents) inputs.document_start = cpu_tensor(documents.data(), {Problem::kB, s});
  attention.forward(local.out(), local.lse(), inputs, scratch);
  const Values delta(local.lse().shape, local.lse().dtype);
  attention.backward({.gradients = {local.dq(), local.dk(), local.dv()},
                      .delta = delta(),
                      .dout = local.dout(),
                      .out = local.out(),
                      .lse = local.lse()},
                     inputs, scratch);
  check(scratch.used_bytes() == 0, "scratch memory is left behind");

  // Ranks write disjoint positions; sums with the zeros that results start from are exact.
  ops->accumulate_positions(whole.out().view(p.out_rows(Problem::kS)),
                            local.out().view(p.out_rows(s)), own);
  ops->accumulate_positions(whole.lse(), local.lse(), own);
  ops->accumulate_positions(whole.dq().view(p.query_rows(Problem::kS)),
                            local.dq().view(p.query_rows(s)), own);
  ops->accumulate_positions(whole.dk(), local.dk(), own);
  ops->accumulate_positions(whole.dv(), local.dv(), own);
}

struct Usage {
  int64_t bytes_sent = 0;
  int64_t peak_bytes = 0;
};

/// Per rank: what forward and backward together sent, and the peak of scratch memory.
std::vector<Usage> attend_on(int ranks, const Problem& p, Operands& whole) {
  std::vector<Usage> usage(static_cast<size_t>(ranks));
  run_thread_ranks(ranks, [&](ThreadRank& rank) {
    const auto cp = rank.world_group();
    const std::unique_ptr<Backend> ops = make_backend(Device::cpu, {.num_threads = 1});
    std::vector<char> block(8 << 20);
    Arena scratch("scratch", block.data(), static_cast<int64_t>(block.size()), Device::cpu);
    attend(p, whole, ops.get(), *cp, scratch);
    usage[static_cast<size_t>(cp->rank())] = {cp->traffic(Collective::exchange).bytes,
                                              scratch.peak_bytes()};
  });
  return usage;
}

/// |actual - expected| <= allowed * max(1, largest |expected|).
template <class T>
void expect_near(const Tensor& actual, const Tensor& expected, double allowed, const char* what) {
  const T* got = actual.as<T>();
  const T* right = expected.as<T>();
  T size = 1;
  for (int64_t i = 0; i < expected.numel(); ++i) size = std::max(size, std::abs(right[i]));
  for (int64_t i = 0; i < expected.numel(); ++i)
    ASSERT_NEAR(got[i], right[i], allowed * static_cast<double>(size)) << what << " element " << i;
}

/// Other orders of the same sums of at most `kTerms` products: 8 eps sqrt(terms).
void expect_equal(const Tensor& actual, const Tensor& expected, const char* what) {
  constexpr double kTerms = double(Problem::kS * 4 * Problem::kR * Problem::kD);
  expect_near<double>(actual, expected, 8 * dtype_epsilon(DType::f64) * std::sqrt(kTerms), what);
}

class ContextRanks : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, ContextRanks, ::testing::Values(1, 2, 3, 4));

TEST_P(ContextRanks, EqualOneRank) {
  for (const Named& named : kMasks)
    for (const bool documents : {false, true})
      for (const bool last_copy : {false, true}) {
        SCOPED_TRACE(::testing::Message()
                     << named.name << " documents " << documents << " last copy " << last_copy);
        const Problem p{named.mask, last_copy ? 1 : named.mask.copies, documents, DType::f64};
        Operands expected(p, Problem::kS, p.dtype);
        const std::unique_ptr<Backend> ops = make_backend(Device::cpu, {.num_threads = 1});
        std::vector<int32_t> starts;
        for (int64_t i = 0; i < Problem::kB * Problem::kS; ++i)
          starts.push_back(document_of(i / Problem::kS, i % Problem::kS));
        AttentionInputs inputs{.q = expected.q(),
                               .k = expected.k(),
                               .v = expected.v(),
                               .mask = p.mask,
                               .scale = 0.3,
                               .query_copies = p.query_copies,
                               .first_query_copy = p.mask.copies - p.query_copies};
        if (documents)
          inputs.document_start = cpu_tensor(starts.data(), {Problem::kB, Problem::kS});
        ops->attention_forward(expected.out(), expected.lse(), inputs);
        const Values delta(expected.lse().shape, DType::f64);
        ops->attention_backward({.gradients = {expected.dq(), expected.dk(), expected.dv()},
                                 .delta = delta(),
                                 .dout = expected.dout(),
                                 .out = expected.out(),
                                 .lse = expected.lse()},
                                inputs);
        Operands whole(p, Problem::kS, p.dtype);
        attend_on(GetParam(), p, whole);
        expect_equal(whole.out(), expected.out(), "out");
        expect_equal(whole.lse(), expected.lse(), "lse");
        expect_equal(whole.dq(), expected.dq(), "dq");
        expect_equal(whole.dk(), expected.dk(), "dk");
        expect_equal(whole.dv(), expected.dv(), "dv");
      }
}

// Parts of other ranks are rounded once each, to half a step of bf16, and so is every result: more
// ranks move a result by at most the parts' roundings, those of out and delta in the backward, and
// its own.
TEST_P(ContextRanks, RoundBf16OncePerPart) {
  for (const Named& named : kMasks) {
    SCOPED_TRACE(named.name);
    const Problem p{named.mask, named.mask.copies, true, DType::bf16};
    Operands one(p, Problem::kS, DType::f32);
    Operands whole(p, Problem::kS, DType::f32);
    attend_on(1, p, one);
    attend_on(GetParam(), p, whole);
    const double allowed = 4 * dtype_epsilon(DType::bf16);
    expect_near<float>(whole.out(), one.out(), allowed, "out");
    expect_near<float>(whole.dq(), one.dq(), allowed, "dq");
    expect_near<float>(whole.dk(), one.dk(), allowed, "dk");
    expect_near<float>(whole.dv(), one.dv(), allowed, "dv");
  }
}

// --- memory is known before there is any ---

TEST_P(ContextRanks, TakeTheMemoryThatWasMeasured) {
  const int ranks = GetParam();
  const DeviceMesh mesh(ParallelConfig{.context_parallel_size = ranks}, ranks);
  for (const Named& named : kMasks)
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(named.name);
      const Problem p{named.mask, named.mask.copies, true, dtype};
      Operands whole(p, Problem::kS, DType::f32);
      const std::vector<Usage> usage = attend_on(ranks, p, whole);
      for (int rank = 0; rank < ranks; ++rank) {
        const ProcessGroups groups = make_measuring_process_groups(mesh, rank);
        NullBackend null(Device::cpu);
        Arena measuring = Arena::measuring("scratch", Device::cpu);
        attend(p, whole, &null, *groups.cp, measuring);
        EXPECT_EQ(measuring.peak_bytes(), usage[static_cast<size_t>(rank)].peak_bytes);
        EXPECT_EQ(measuring.peak_bytes(), usage[0].peak_bytes) << "the same on all ranks";
        EXPECT_EQ(measuring.peak_bytes() > 0, ranks > 1);
      }
    }
}

// --- bytes ---
//
// A position of one copy of keys and values is u = 2 B G D bytes_per_element bytes. Of the 2c
// pieces of a sequence on c ranks, each p = S / 2c positions, rank r holds pieces r and 2c-1-r.
// Rank q sees both pieces of r if q < r, only the early one if q > r. So forward and backward
// each send 2r + (c-1-r) = c-1+r pieces of keys, and the backward sends home the gradients of the
// 2(c-1-r) + r = 2(c-1)-r pieces it was sent: in all (4(c-1) + r) p u, whatever K is.
// Naive repetition sends K times that. PHD-SWA adds W-1 positions of K-1 hidden copies, twice
// there and once home, at each border of its pieces with another rank's: 2, for the first and the
// last rank 1.

constexpr int64_t kUnit = 2 * Problem::kB * Problem::kG * Problem::kD * 4;

int64_t original_bytes(int ranks, int64_t rank) {
  return (4 * (ranks - 1) + rank) * (Problem::kS / (2 * ranks)) * kUnit;
}

std::vector<int64_t> bytes_sent(int ranks, const AttentionMask& mask) {
  const Problem p{mask, mask.copies, true, DType::f32};
  Operands whole(p, Problem::kS, DType::f32);
  std::vector<int64_t> bytes;
  for (const Usage& usage : attend_on(ranks, p, whole)) bytes.push_back(usage.bytes_sent);
  return bytes;
}

TEST_P(ContextRanks, SendTheSameBytesForEveryK) {
  const int ranks = GetParam();
  std::vector<int64_t> expected;
  for (int64_t rank = 0; rank < ranks; ++rank) expected.push_back(original_bytes(ranks, rank));
  for (const int64_t copies : {1, 2, 4}) {
    EXPECT_EQ(bytes_sent(ranks, phd(copies)), expected) << "PHD-" << copies;
    EXPECT_EQ(bytes_sent(ranks, phd(copies, 2, 2)), expected) << "CSWA-" << copies;
    std::vector<int64_t> all = expected;
    for (int64_t& bytes : all) bytes *= copies;
    EXPECT_EQ(bytes_sent(ranks, naive(copies)), all) << "naive-" << copies;
  }
}

TEST_P(ContextRanks, SendTheHaloOfAWindowOnTop) {
  const int ranks = GetParam();
  for (const int64_t copies : {2, 3})
    for (const int64_t window : {1, 2, 5}) {
      std::vector<int64_t> expected;
      for (int64_t rank = 0; rank < ranks; ++rank) {
        const int64_t borders = (rank > 0 ? 1 : 0) + (rank < ranks - 1 ? 1 : 0);
        expected.push_back(original_bytes(ranks, rank) +
                           3 * borders * (window - 1) * (copies - 1) * kUnit);
      }
      EXPECT_EQ(bytes_sent(ranks, phd(copies, window)), expected) << copies << " " << window;
    }
}

// Positions of `held` that a query at `queries` sees, pair by pair.
int64_t positions_seen(const AttentionMask& mask, const Ranges& queries, const Ranges& held) {
  int64_t seen = 0;
  for (const PositionRange& keys : held)
    for (int64_t m = keys.begin; m < keys.end; ++m) {
      bool visible = false;
      for (const PositionRange& range : queries)
        for (int64_t n = range.begin; n < range.end; ++n)
          visible = visible || mask.original_visible(n, m);
      seen += visible ? 1 : 0;
    }
  return seen;
}

TEST_P(ContextRanks, SendOnlyTheBlocksThatSparseLayersRead) {
  const int ranks = GetParam();
  for (const AttentionMask& mask : {sink_window(1, 2), strided(1, 2), strided(1, 1)}) {
    std::vector<int64_t> expected(static_cast<size_t>(ranks));
    for (int rank = 0; rank < ranks; ++rank)
      for (int other = 0; other < ranks; ++other) {
        if (other == rank) continue;
        const Ranges mine = context_positions(Problem::kS, rank, ranks);
        const Ranges theirs = context_positions(Problem::kS, other, ranks);
        expected[static_cast<size_t>(rank)] +=
            (2 * positions_seen(mask, theirs, mine) + positions_seen(mask, mine, theirs)) * kUnit;
      }
    EXPECT_EQ(bytes_sent(ranks, mask), expected);
    if (ranks > 1) {
      EXPECT_LT(expected[0], original_bytes(ranks, 0));
    }
  }
}

}  // namespace
}  // namespace phalanx::testing
