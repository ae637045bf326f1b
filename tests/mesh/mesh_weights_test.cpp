// Weights after initialisation: the same bits on every mesh, and every element of every tensor is
// held by a rank and owned by an optimizer shard, so that no comparison leaves anything out.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "parallel/piece_table.h"
#include "parallel/thread_process_group.h"
#include "tests/mesh/mesh_case.h"
#include "tests/mesh/mesh_list.h"
#include "tests/mesh/mesh_system.h"

namespace phalanx::test {
namespace {

/// The bytes of `piece` of a global tensor of `element`-byte elements.
std::vector<char> bytes_of(const char* whole, const Parameter& parameter, int64_t global_columns,
                           int64_t element) {
  std::vector<char> bytes;
  const Shape shape = parameter.matrix_shape();
  for (int64_t row = 0; row < shape[0]; ++row) {
    const int64_t place = (parameter.offset[0] + row) * global_columns + parameter.offset[1];
    const char* begin = whole + place * element;
    bytes.insert(bytes.end(), begin, begin + shape[1] * element);
  }
  return bytes;
}

void expect_same_bits(const ParameterStore& store, const ParameterStore& whole) {
  std::map<std::string, const Parameter*> expected;
  for (int64_t i = 0; i < whole.size(); ++i) expected[whole[i].spec.name] = &whole[i];
  for (int64_t i = 0; i < store.size(); ++i) {
    const Parameter& own = store[i];
    const auto found = expected.find(own.spec.name);
    ASSERT_NE(found, expected.end()) << own.spec.name;
    ASSERT_TRUE(own.spec.global_shape == found->second->shape) << own.spec.name;
    const std::vector<char> bytes =
        bytes_of(static_cast<const char*>(found->second->value.data), own,
                 found->second->matrix_shape()[1], dtype_bytes(store.dtype()));
    EXPECT_EQ(std::memcmp(own.value.data, bytes.data(), bytes.size()), 0) << own.spec.name;
  }
}

std::vector<Piece> shard_pieces(const DistributedOptimizer& optimizer) {
  std::vector<Piece> pieces;
  for (const OptimizerShard& shard : optimizer.shards())
    pieces.push_back(piece_of(*shard.parameter, shard.row_begin, shard.row_end));
  return pieces;
}

/// Elements of each tensor that no piece has: a bit per element.
std::map<std::string, int64_t> missing_elements(const ParameterStore& whole,
                                                const PieceTable& table) {
  std::map<std::string, std::vector<bool>> covered;
  for (int64_t i = 0; i < whole.size(); ++i)
    covered[whole[i].spec.name].resize(static_cast<size_t>(whole[i].numel()));
  for (const PieceTable::Entry& entry : table.entries()) {
    const Piece& piece = entry.piece;
    const int64_t columns = piece.global_shape.rank() == 2 ? piece.global_shape[1] : 1;
    std::vector<bool>& bits = covered[piece.name];
    for (int64_t row = 0; row < piece.size[0]; ++row)
      for (int64_t column = 0; column < piece.size[1]; ++column)
        bits.at(static_cast<size_t>((piece.offset[0] + row) * columns + piece.offset[1] + column)) =
            true;
  }
  std::map<std::string, int64_t> missing;
  for (const auto& [name, bits] : covered)
    if (const auto count = std::count(bits.begin(), bits.end(), false); count > 0)
      missing[name] = count;
  return missing;
}

std::span<const char* const> list_called(const std::string& name) {
  return name == "single" ? single_meshes() : name == "pairs" ? pair_meshes() : mixed_meshes();
}

class MeshWeights : public testing::TestWithParam<const char*> {};

TEST_P(MeshWeights, AreTheSameBitsAndLeaveNothingOut) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const char* line : list_called(GetParam())) {
      SCOPED_TRACE(std::string(line) + " " + dtype_name(dtype));
      MeshCase mesh(line);
      mesh.layout.dtype = dtype;
      const MeshSystem whole(mesh.layout, {}, make_single_process_groups());
      run_thread_ranks(static_cast<int>(mesh.world_size), [&](ThreadRank& rank) {
        const MeshSystem system(mesh.layout, mesh.layout.parallel,
                                rank.process_groups(DeviceMesh(mesh.layout.parallel, rank.size())));
        expect_same_bits(system.store, whole.store);
        const PieceTable held(pieces_of(system.store), *system.groups.world);
        const PieceTable owned(shard_pieces(system.optimizer), *system.groups.world);
        EXPECT_TRUE(missing_elements(whole.store, held).empty());
        EXPECT_TRUE(missing_elements(whole.store, owned).empty());
      });
    }
}
INSTANTIATE_TEST_SUITE_P(Lists, MeshWeights, testing::Values("single", "pairs", "mixed"),
                         [](const auto& info) { return std::string(info.param); });

TEST(MeshWeightsCoverage, WhatNoRankHoldsIsFound) {
  MeshCase mesh("untied: dp2");
  const MeshSystem whole(mesh.layout, {}, make_single_process_groups());
  std::vector<Piece> pieces = pieces_of(whole.store);
  --pieces.front().size[0];
  pieces.pop_back();
  const auto alone = make_single_process_groups();
  const auto missing = missing_elements(whole.store, PieceTable(pieces, *alone.world));
  const std::map<std::string, int64_t> expected = {{"embedding.weight", 16}, {"head.weight", 512}};
  EXPECT_EQ(missing, expected);
}

}  // namespace
}  // namespace phalanx::test
