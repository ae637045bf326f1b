// Taking some positions out of a tensor and adding them back, against naive loops.
#include "tests/kernels/op_test.h"

namespace phalanx::test {
namespace {

class Positions : public OpTest {};
INSTANTIATE_TEST_SUITE_P(Ops, Positions, testing::ValuesIn(op_cases()), op_case_name);

TEST_P(Positions, GatherAndAccumulateAgainstTheirDefinition) {
  const std::vector<PositionRange> runs = {{0, 3}, {3, 4}, {9, 9}, {40, 61}};
  constexpr int64_t kKept = 25;
  for (const int64_t width : {1, 5, 64}) {
    const Array x = random_array({2, 3, 61, width}, dtype, 1);
    const Array added = random_array({2, 3, kKept, width}, dtype, 2);
    Array kept({2, 3, kKept, width});
    Array sum = random_array({2, 3, 61, width}, accumulator_dtype(dtype), 3);
    const Tensor y = bench.upload(sum, accumulator_dtype(dtype));
    for (int64_t outer = 0; outer < 6; ++outer) {
      int64_t row = 0;
      for (const PositionRange& run : runs)
        for (int64_t position = run.begin; position < run.end; ++position, ++row)
          for (int64_t d = 0; d < width; ++d) {
            const int64_t whole = (outer * 61 + position) * width + d;
            const int64_t part = (outer * kKept + row) * width + d;
            kept[part] = x[whole];
            sum[whole] = round_to(accumulator_dtype(dtype), sum[whole] + added[part]);
          }
    }
    const Tensor gathered = bench.poisoned({2, 3, kKept, width}, dtype);
    ops.gather_positions(gathered, bench.upload(x, dtype), runs);
    expect_within(bench.download(gathered), kept, 0.0, "gather_positions");
    ops.accumulate_positions(y, bench.upload(added, dtype), runs);
    expect_within(bench.download(y), sum, 0.0, "accumulate_positions");
  }
}

}  // namespace
}  // namespace phalanx::test
