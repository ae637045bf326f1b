// A small checkpoint made of random numbers, cut into blocks and dealt to shards as a test wants.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/checkpoint/manifest.h"

namespace phalanx {

struct FixtureCheckpoint {
  std::vector<SavedTensor> tensors{{"embedding.weight", {96, 64}},
                                   {"layers.00.attention.q.weight", {64, 64}},
                                   {"layers.00.mlp.down.weight", {6, 1024}},
                                   {"layers.00.norm.weight", {64}}};  // by name
  int64_t row_cuts = 1;                                               // of every tensor
  int64_t column_cuts = 1;                                            // of every matrix
  int64_t num_shards = 2;                                             // blocks go round
  DType dtype = DType::f32;
  int64_t step = 100;
  uint64_t seed = 1;
  std::string config_ini = "# Configuration of a phalanx run\n[Model]\nnum-layers = 1\n";
  /// Element `index` of a part (named with its prefix) instead of a random number.
  std::function<double(const std::string& name, int64_t index)> value = {};
};

/// Writes the checkpoint into `folder`, which it makes, and returns its manifest.
Manifest write_fixture(const std::string& folder, const FixtureCheckpoint& fixture);

/// Every element of one part of a tensor, read from the shards' bytes.
std::vector<double> read_fixture(const std::string& folder, const std::string& tensor, int part);

/// Flips one bit of a file.
void flip_bit(const std::string& path, int64_t byte, int bit);

}  // namespace phalanx
