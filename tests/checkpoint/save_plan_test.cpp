// Plans of random meshes: every element once, by a rank that has it, the same plan everywhere.
#include "core/checkpoint/save_plan.h"

#include <gmock/gmock.h>

#include <map>
#include <random>

#include "parallel/thread_process_group.h"
#include "tests/checkpoint/global_state.h"

namespace phalanx::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

using Pieces = std::vector<std::vector<Piece>>;  // by rank

/// 0, up to `most` numbers between, `size`.
std::vector<int64_t> random_cuts(int64_t size, int most, std::mt19937& random) {
  std::vector<int64_t> cuts{0, size};
  for (int i = 0; i < most; ++i) cuts.push_back(static_cast<int64_t>(random() % (size + 1)));
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  return cuts;
}

/// Cuts the rows of a band of columns for the ranks of a group, as sharded state is.
void deal_rows(const Piece& band, const std::vector<int>& group, Pieces& pieces,
               std::mt19937& random) {
  const auto cuts = random_cuts(band.size[0], static_cast<int>(group.size()) + 1, random);
  for (size_t i = 1; i < cuts.size(); ++i) {
    Piece piece = band;
    piece.offset[0] = cuts[i - 1];
    piece.size[0] = cuts[i] - cuts[i - 1];
    pieces[static_cast<size_t>(group[random() % group.size()])].push_back(piece);
  }
}

/// Tensors cut into bands of columns; each band is held whole by one or several groups of ranks
/// (the ends of a pipeline, ranks that share a head), each of which cuts its rows as it likes.
Pieces random_mesh(int num_ranks, int num_tensors, std::mt19937& random) {
  Pieces pieces(static_cast<size_t>(num_ranks));
  for (int t = 0; t < num_tensors; ++t) {
    const bool vector = random() % 4 == 0;
    const auto rows = static_cast<int64_t>(1 + random() % 40);
    const auto columns = vector ? 1 : static_cast<int64_t>(1 + random() % 12);
    Piece whole{.name = "tensor." + std::to_string(t),
                .global_shape = vector ? Shape{rows} : Shape{rows, columns}};
    const auto bands = random_cuts(columns, 2, random);
    for (size_t b = 1; b < bands.size(); ++b)
      for (size_t copies = 1 + random() % 3; copies > 0; --copies) {
        Piece band = whole;
        band.offset = {0, bands[b - 1]};
        band.size = {rows, bands[b] - bands[b - 1]};
        std::vector<int> group;
        for (int rank = 0; rank < num_ranks; ++rank)
          if (random() % 2 == 0) group.push_back(rank);
        if (group.empty()) group.push_back(0);
        deal_rows(band, group, pieces, random);
      }
  }
  for (auto& list : pieces) std::shuffle(list.begin(), list.end(), random);
  return pieces;
}

struct Plan {
  std::vector<PlannedBlock> blocks;
  std::vector<Piece> pieces;              // of the blocks' entries
  std::vector<std::vector<int>> holders;  // likewise
};

/// The plans of all ranks.
std::vector<Plan> plans_of(const Pieces& pieces) {
  std::vector<Plan> plans(pieces.size());
  run_thread_ranks(static_cast<int>(pieces.size()), [&](ThreadRank& rank) {
    const auto own = static_cast<size_t>(rank.rank());
    const auto world = rank.world_group();
    const PieceTable table(pieces[own], *world);
    plans[own].blocks = plan_save(table);
    for (const PlannedBlock& block : plans[own].blocks) {
      const PieceTable::Entry& entry = table.entries()[static_cast<size_t>(block.entry)];
      plans[own].pieces.push_back(entry.piece);
      plans[own].holders.push_back(table.holders(entry));
    }
  });
  return plans;
}

/// How often each element of each tensor is in a block.
std::map<std::string, std::vector<int>> times_written(const Plan& plan) {
  std::map<std::string, std::vector<int>> times;
  for (size_t i = 0; i < plan.blocks.size(); ++i) {
    const Piece& piece = plan.pieces[i];
    const PlannedBlock& block = plan.blocks[i];
    const int64_t columns = matrix_size(piece.global_shape)[1];
    auto& of_tensor = times[piece.name];
    of_tensor.resize(static_cast<size_t>(piece.global_shape.numel()));
    for (int64_t row = block.row_begin; row < block.row_end; ++row)
      for (int64_t column = 0; column < piece.size[1]; ++column)
        ++of_tensor.at(static_cast<size_t>(row * columns + piece.offset[1] + column));
  }
  return times;
}

TEST(SavePlan, RandomMeshesAreCoveredOnceByThoseThatHoldThem) {
  std::mt19937 random(5);
  for (int attempt = 0; attempt < 60; ++attempt) {
    const int num_ranks = 1 + static_cast<int>(random() % 6);
    const int num_tensors = 1 + static_cast<int>(random() % 8);
    const auto plans = plans_of(random_mesh(num_ranks, num_tensors, random));
    for (const Plan& plan : plans) ASSERT_TRUE(plan.blocks == plans.front().blocks);
    const Plan& plan = plans.front();
    const auto times = times_written(plan);
    ASSERT_EQ(std::ssize(times), num_tensors);
    for (const auto& [name, of_tensor] : times)
      ASSERT_EQ(std::ranges::count(of_tensor, 1), std::ssize(of_tensor)) << name;
    for (size_t i = 0; i < plan.blocks.size(); ++i) {
      const PlannedBlock& block = plan.blocks[i];
      const Piece& piece = plan.pieces[i];
      ASSERT_TRUE(std::ranges::binary_search(plan.holders[i], block.rank));
      ASSERT_LE(piece.offset[0], block.row_begin);
      ASSERT_LE(block.row_end, piece.offset[0] + piece.size[0]);
      ASSERT_LT(block.row_begin, block.row_end);
    }
  }
}

Piece rows_of(const std::string& name, const Shape& shape, int64_t begin, int64_t end) {
  return {name, shape, {begin, 0}, {end - begin, matrix_size(shape)[1]}};
}

TEST(SavePlan, TiedTensorsCutAtDifferentRowsAreSharedOut) {
  const Shape shape{90, 4};
  // Ranks 0 and 1 at one end of the pipeline, ranks 2, 3 and 4 at the other.
  const Pieces pieces{{rows_of("table", shape, 0, 50)},
                      {rows_of("table", shape, 50, 90)},
                      {rows_of("table", shape, 0, 20)},
                      {rows_of("table", shape, 20, 60)},
                      {rows_of("table", shape, 60, 90)}};
  const std::vector<Plan> plans = plans_of(pieces);
  std::map<int, int64_t> rows;
  for (const PlannedBlock& block : plans.front().blocks)
    rows[block.rank] += block.row_end - block.row_begin;
  // Cells 60-90, 20-50, 0-20, 50-60: each to the one with less so far, the first if equal.
  const std::map<int, int64_t> expected{{0, 30}, {1, 30}, {2, 20}, {3, 10}};
  EXPECT_EQ(rows, expected);
}

std::string failure_to_plan(const std::vector<Piece>& pieces) {
  const auto alone = make_single_process_groups();
  return failure_of<Error>([&] { plan_save(PieceTable(pieces, *alone.world)); });
}

TEST(SavePlan, WhatNobodyHoldsIsNamed) {
  const Shape shape{10, 6};
  const auto with = [&](std::array<int64_t, 2> offset, std::array<int64_t, 2> size) {
    return Piece{"layers.07.x", shape, offset, size};
  };
  const auto named = [](const char* place) {
    return AllOf(HasSubstr("layers.07.x [10, 6]"), HasSubstr(place));
  };
  EXPECT_THAT(failure_to_plan({with({1, 0}, {9, 6})}), named("row 0, column 0"));
  EXPECT_THAT(failure_to_plan({with({0, 0}, {9, 6})}), named("row 9, column 0"));
  EXPECT_THAT(failure_to_plan({with({0, 0}, {4, 6}), with({5, 0}, {5, 6})}),
              named("row 4, column 0"));
  EXPECT_THAT(failure_to_plan({with({0, 0}, {10, 5})}), named("column 5"));
  EXPECT_THAT(failure_to_plan({with({0, 1}, {10, 5})}), named("column 0"));
  EXPECT_THAT(failure_to_plan({with({0, 0}, {10, 2}), with({0, 3}, {10, 3})}), named("column 2"));
  EXPECT_THAT(failure_to_plan({with({0, 0}, {10, 3}), with({0, 0}, {10, 4})}), named("column 0"));
  EXPECT_THAT(failure_to_plan({with({0, 0}, {10, 4}), with({0, 3}, {10, 3})}), named("column 4"));
  EXPECT_EQ(failure_to_plan({with({0, 0}, {10, 3}), with({0, 3}, {10, 3})}), "no such failure");
}

// A gap made at random in a mesh without replicas is always found.
TEST(SavePlan, EveryMissingPieceIsFound) {
  std::mt19937 random(6);
  for (int attempt = 0; attempt < 200; ++attempt) {
    Pieces pieces(1);
    const Piece whole{"t", {30, 8}, {0, 0}, {30, 8}};
    const auto bands = random_cuts(8, 3, random);
    for (size_t b = 1; b < bands.size(); ++b) {
      Piece band = whole;
      band.offset[1] = bands[b - 1];
      band.size[1] = bands[b] - bands[b - 1];
      deal_rows(band, {0}, pieces, random);
    }
    ASSERT_EQ(failure_to_plan(pieces[0]), "no such failure");
    const bool only = pieces[0].size() == 1;
    pieces[0].erase(pieces[0].begin() + static_cast<int64_t>(random() % pieces[0].size()));
    if (only) continue;  // without pieces there is no tensor
    ASSERT_THAT(failure_to_plan(pieces[0]), HasSubstr("tensor t [30, 8]"));
  }
}

}  // namespace
}  // namespace phalanx::test
