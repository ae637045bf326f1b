// manifest.json and COMMITTED.
#include "core/checkpoint/manifest.h"

#include <fmt/format.h>

#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/checkpoint/save_names.h"
#include "data/file_io.h"

namespace phalanx {
namespace {

using Json = nlohmann::ordered_json;  // to write, in the order of the fields
// To read: an ordered object copies its values whenever it grows, which takes time and, for every
// level that a broken file may have, stack.
using Parsed = nlohmann::json;

constexpr char kFormat[] = "phalanx checkpoint 1";
// No tensor is larger; keeps products and sums of sizes inside 64 bits.
constexpr int64_t kLargestDim = int64_t{1} << 31;
constexpr int64_t kMostElements = int64_t{1} << 44;

std::string hex(uint64_t value) {
  return fmt::format("{:016x}", value);
}

/// For messages. Lists and objects by their type only, because to print them takes stack for every
/// level, and any text may be in the file.
std::string shown(const Parsed& value) {
  return value.is_structured() ? value.type_name() : value.dump();
}

/// Reads fields of one JSON object; whatever is not as it must be is damage.
class Reader {
 public:
  Reader(const Parsed& json, std::string where) : json_(json), where_(std::move(where)) {
    check_intact(json.is_object(), where_, " is not a JSON object");
  }

  int64_t number(const char* key, int64_t least = 0) const {
    const Parsed& value = at(key);
    check_intact(value.is_number_integer() && !value.is_number_float() &&
                     (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX),
                 where_, ": ", key, " is not a whole number but ", shown(value));
    const auto result = value.get<int64_t>();
    check_intact(result >= least, where_, ": ", key, " is ", result, ", expected at least ", least);
    return result;
  }
  std::string text(const char* key) const {
    const Parsed& value = at(key);
    check_intact(value.is_string(), where_, ": ", key, " is not a text but ", shown(value));
    return value.get<std::string>();
  }
  uint64_t digest(const char* key) const { return parse_digest(at(key), key); }
  const Parsed& list(const char* key) const {
    const Parsed& value = at(key);
    check_intact(value.is_array(), where_, ": ", key, " is not a list");
    return value;
  }
  std::vector<int64_t> numbers(const char* key, size_t least, size_t most) const {
    const Parsed& values = list(key);
    check_intact(values.size() >= least && values.size() <= most, where_, ": ", key, " has ",
                 values.size(), " numbers");
    std::vector<int64_t> result;
    for (const Parsed& value : values) {
      check_intact(value.is_number_unsigned() && value.get<uint64_t>() <= INT64_MAX, where_, ": ",
                   key, " holds ", shown(value), ", expected numbers from 0 on");
      result.push_back(value.get<int64_t>());
    }
    return result;
  }
  std::array<uint64_t, kNumParts> digests(const char* key) const {
    const Parsed& values = list(key);
    check_intact(values.size() == kNumParts, where_, ": ", key, " has ", values.size(),
                 " checksums, expected ", kNumParts);
    std::array<uint64_t, kNumParts> result{};
    for (size_t i = 0; i < result.size(); ++i) result[i] = parse_digest(values[i], key);
    return result;
  }

 private:
  const Parsed& at(const char* key) const {
    const auto place = json_.find(key);
    check_intact(place != json_.end(), where_, " has no ", key);
    return *place;
  }
  uint64_t parse_digest(const Parsed& value, const char* key) const {
    const std::string text = value.is_string() ? value.get<std::string>() : "";
    check_intact(text.size() == 16 && text.find_first_not_of("0123456789abcdef") == text.npos,
                 where_, ": ", key, " is not a checksum but ", shown(value));
    return std::stoull(text, nullptr, 16);
  }

  const Parsed& json_;
  std::string where_;
};

Json to_json(const SavedBlock& block) {
  Json digests = Json::array();
  for (const uint64_t digest : block.digest) digests.push_back(hex(digest));
  return {{"tensor", block.tensor},
          {"offset", block.offset},
          {"size", block.size},
          {"place", block.place},
          {"checksum", digests}};
}

Json to_json(const SavedShard& shard) {
  Json blocks = Json::array();
  for (const SavedBlock& block : shard.blocks) blocks.push_back(to_json(block));
  return {{"file", shard.file},
          {"bytes", shard.bytes},
          {"frame_checksum", hex(shard.frame_digest)},
          {"blocks", std::move(blocks)}};
}

SavedTensor read_tensor(const Parsed& json, const std::string& path) {
  const Reader reader(json, path + ": a tensor");
  SavedTensor tensor{.name = reader.text("name"), .shape = {}};
  check_intact(!tensor.name.empty(), path, ": a tensor has no name");
  const std::vector<int64_t> dims = reader.numbers("shape", 1, 2);
  for (const int64_t dim : dims)
    check_intact(dim >= 1 && dim < kLargestDim, path, ": ", tensor.name, " has a dim of ", dim);
  tensor.shape = dims.size() == 1 ? Shape{dims[0]} : Shape{dims[0], dims[1]};
  check_intact(tensor.shape.numel() <= kMostElements, path, ": ", tensor.name, " has ",
               tensor.shape.numel(), " elements");
  return tensor;
}

SavedBlock read_block(const Parsed& json, const std::string& path) {
  const Reader reader(json, path + ": a block");
  SavedBlock block{.tensor = reader.text("tensor")};
  const auto offset = reader.numbers("offset", 2, 2);
  const auto size = reader.numbers("size", 2, 2);
  const auto place = reader.numbers("place", kNumParts, kNumParts);
  std::copy(offset.begin(), offset.end(), block.offset.begin());
  std::copy(size.begin(), size.end(), block.size.begin());
  std::copy(place.begin(), place.end(), block.place.begin());
  block.digest = reader.digests("checksum");
  return block;
}

SavedShard read_shard(const Parsed& json, const std::string& path) {
  const Reader reader(json, path + ": a shard");
  SavedShard shard{.file = reader.text("file"),
                   .bytes = reader.number("bytes"),
                   .frame_digest = reader.digest("frame_checksum"),
                   .blocks = {}};
  // Nothing but a name beside the manifest, whoever wrote it.
  check_intact(
      !shard.file.empty() && shard.file.find('/') == std::string::npos && shard.file.front() != '.',
      path, ": '", shard.file, "' is not the name of a shard");
  for (const Parsed& block : reader.list("blocks")) shard.blocks.push_back(read_block(block, path));
  return shard;
}

/// Every block inside its tensor and its file.
void check_blocks(const Manifest& manifest, const std::string& path) {
  const int64_t element = dtype_bytes(manifest.dtype);
  for (const SavedShard& shard : manifest.shards)
    for (const SavedBlock& block : shard.blocks) {
      const SavedTensor* tensor = manifest.find(block.tensor);
      check_intact(tensor != nullptr, path, ": ", shard.file, " holds a block of ", block.tensor,
                   ", which is not in the list of tensors");
      const auto whole = matrix_size(tensor->shape);
      for (const size_t dim : {0U, 1U})
        check_intact(block.size[dim] >= 1 && block.size[dim] <= whole[dim] &&
                         block.offset[dim] <= whole[dim] - block.size[dim],
                     path, ": a block of ", block.tensor, " in ", shard.file, " lies outside of ",
                     tensor->shape.to_string());
      check_intact(block.numel() * element <= shard.bytes, path, ": a block of ", block.tensor,
                   " is larger than ", shard.file);
      for (const int64_t place : block.place)
        check_intact(place <= shard.bytes - block.numel() * element, path, ": a block of ",
                     block.tensor, " lies behind the end of ", shard.file);
    }
}

/// Every element of every tensor in exactly one block: the numbers of elements agree, and no two
/// blocks of a tensor overlap.
void check_cover(const Manifest& manifest, const std::string& path) {
  std::map<std::string_view, std::vector<const SavedBlock*>> of_tensor;
  for (const SavedShard& shard : manifest.shards)
    for (const SavedBlock& block : shard.blocks) of_tensor[block.tensor].push_back(&block);
  for (const SavedTensor& tensor : manifest.tensors) {
    auto& blocks = of_tensor[tensor.name];
    int64_t elements = 0;
    for (const SavedBlock* block : blocks) {
      elements += block->numel();
      if (elements > tensor.shape.numel()) break;  // before many of them leave 64 bits
    }
    check_intact(elements == tensor.shape.numel(), path, ": the blocks of ", tensor.name, " have ",
                 elements, " elements or more, expected ", tensor.shape.numel());
    // By column, then row: with as many elements as the tensor, blocks that do not overlap their
    // successor in a band, and bands that do not overlap, leave no gap either.
    std::sort(blocks.begin(), blocks.end(), [](const SavedBlock* a, const SavedBlock* b) {
      return std::pair(a->offset[1], a->offset[0]) < std::pair(b->offset[1], b->offset[0]);
    });
    for (size_t i = 1; i < blocks.size(); ++i) {
      const SavedBlock& a = *blocks[i - 1];
      const SavedBlock& b = *blocks[i];
      const bool same_band = a.offset[1] == b.offset[1] && a.size[1] == b.size[1] &&
                             a.offset[0] + a.size[0] <= b.offset[0];
      const bool next_band = a.offset[1] + a.size[1] == b.offset[1];
      check_intact(same_band || next_band, path, ": two blocks of ", tensor.name, " overlap");
    }
  }
}

Manifest read_json(const Parsed& json, const std::string& path) {
  const Reader reader(json, path);
  check_intact(reader.text("format") == kFormat, path, " has format '", reader.text("format"),
               "', expected '", kFormat, "'");
  Manifest manifest;
  manifest.counters = {.step = reader.number("step"),
                       .consumed_samples = reader.number("consumed_samples"),
                       .consumed_tokens = reader.number("consumed_tokens"),
                       .skipped_steps = reader.number("skipped_steps"),
                       .skipped_in_row = reader.number("skipped_in_row")};
  manifest.num_updates = reader.number("num_updates");
  manifest.config_ini = reader.text("config");
  manifest.tokenizer_hash = reader.text("tokenizer_hash");
  manifest.code_version = reader.text("code_version");
  manifest.layout = reader.text("layout");
  manifest.world_size = reader.number("world_size", 1);
  manifest.epoch = reader.number("epoch");
  manifest.order_samples = reader.number("order_samples");
  const std::string dtype = reader.text("dtype");
  check_intact(dtype == "f32" || dtype == "f64", path, ": dtype is '", dtype,
               "', expected f32 or f64");
  manifest.dtype = dtype == "f32" ? DType::f32 : DType::f64;
  manifest.index_bytes = reader.number("index_bytes");
  manifest.index_digest = reader.digest("index_checksum");
  for (const Parsed& tensor : reader.list("tensors"))
    manifest.tensors.push_back(read_tensor(tensor, path));
  for (const Parsed& shard : reader.list("shards"))
    manifest.shards.push_back(read_shard(shard, path));
  return manifest;
}

template <class List, class Key>
void check_ascending(const List& list, Key key, const std::string& path) {
  for (size_t i = 1; i < list.size(); ++i)
    check_intact(list[i - 1].*key < list[i].*key, path, ": ", list[i].*key,
                 " appears twice or out of order");
}

}  // namespace

const SavedTensor* Manifest::find(const std::string& name) const {
  const auto place = std::lower_bound(
      tensors.begin(), tensors.end(), name,
      [](const SavedTensor& tensor, const std::string& key) { return tensor.name < key; });
  return place != tensors.end() && place->name == name ? &*place : nullptr;
}

int64_t Manifest::data_bytes() const {
  int64_t elements = 0;
  for (const SavedTensor& tensor : tensors) elements += tensor.shape.numel();
  return elements * kNumParts * dtype_bytes(dtype);
}

std::array<int64_t, 2> matrix_size(const Shape& shape) {
  return {shape[0], shape.rank() == 2 ? shape[1] : 1};
}

std::string manifest_json(const Manifest& manifest) {
  const TrainCounters& counters = manifest.counters;
  Json json{{"format", kFormat},
            {"step", counters.step},
            {"consumed_samples", counters.consumed_samples},
            {"consumed_tokens", counters.consumed_tokens},
            {"skipped_steps", counters.skipped_steps},
            {"skipped_in_row", counters.skipped_in_row},
            {"num_updates", manifest.num_updates},
            {"tokenizer_hash", manifest.tokenizer_hash},
            {"code_version", manifest.code_version},
            {"layout", manifest.layout},
            {"world_size", manifest.world_size},
            {"epoch", manifest.epoch},
            {"order_samples", manifest.order_samples},
            {"dtype", dtype_name(manifest.dtype)},
            {"index_bytes", manifest.index_bytes},
            {"index_checksum", hex(manifest.index_digest)},
            {"config", manifest.config_ini}};
  Json tensors = Json::array();
  for (const SavedTensor& tensor : manifest.tensors) {
    Json shape = Json::array();
    for (int dim = 0; dim < tensor.shape.rank(); ++dim) shape.push_back(tensor.shape[dim]);
    tensors.push_back({{"name", tensor.name}, {"shape", std::move(shape)}});
  }
  Json shards = Json::array();
  for (const SavedShard& shard : manifest.shards) shards.push_back(to_json(shard));
  json["tensors"] = std::move(tensors);
  json["shards"] = std::move(shards);
  // Bytes that are not UTF-8 (a folder's name in the configuration) must not lose a checkpoint.
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string shard_json(const SavedShard& shard) {
  return to_json(shard).dump();
}

SavedShard parse_shard(const std::string& text) {
  const std::string path = "a rank's list of blocks";
  const Parsed json = Parsed::parse(text, nullptr, false);
  check_intact(!json.is_discarded(), path, " is not JSON");
  return read_shard(json, path);
}

Manifest parse_manifest(const std::string& text, const std::string& path) {
  const Parsed json = Parsed::parse(text, nullptr, false);
  check_intact(!json.is_discarded(), path, " is not JSON");
  Manifest manifest = read_json(json, path);
  check_ascending(manifest.tensors, &SavedTensor::name, path);
  check_ascending(manifest.shards, &SavedShard::file, path);
  check_blocks(manifest, path);
  check_cover(manifest, path);
  return manifest;
}

std::string committed_text(int64_t iteration, const std::string& manifest_text) {
  return fmt::format("iteration {}, manifest {:016x}\n", iteration,
                     XXH3_64bits(manifest_text.data(), manifest_text.size()));
}

Manifest read_checkpoint_manifest(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  for (const std::string& file : {folder + "/COMMITTED", path})
    check_intact(file_exists(file), file, " is missing; the checkpoint is not complete");
  const std::string text = read_file(path);
  const std::string committed = read_file(folder + "/COMMITTED");
  Manifest manifest = parse_manifest(text, path);
  const std::string expected = committed_text(manifest.counters.step, text);
  check_intact(committed == expected, folder, "/COMMITTED does not fit ", path, ": it should say '",
               expected.substr(0, expected.size() - 1), "'");
  // A whole checkpoint under another's name.
  const auto name = parse_save_name(std::filesystem::path(folder).filename().string());
  check_intact(!name || name->iteration == manifest.counters.step, folder,
               ": by its manifest it is of iteration ", manifest.counters.step, ", expected ",
               name ? name->iteration : 0);
  return manifest;
}

}  // namespace phalanx
