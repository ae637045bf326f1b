// Manifests: what is written comes back; anything else is damage, whatever the text.
#include "core/checkpoint/manifest.h"

#include <gmock/gmock.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "data/file_io.h"
#include "tests/checkpoint/global_state.h"
#include "tests/data/data_helpers.h"

namespace phalanx::test {
namespace {

using Json = nlohmann::ordered_json;
using testing::AllOf;
using testing::HasSubstr;

constexpr char kPath[] = "SAVE/iter_0000012/manifest.json";

SavedBlock block_of(const std::string& tensor, std::array<int64_t, 2> offset,
                    std::array<int64_t, 2> size, int64_t place) {
  const int64_t bytes = size[0] * size[1] * 4;
  return {tensor, offset, size, {place, place + bytes, place + 2 * bytes}, {1, ~uint64_t{0}, 77}};
}

/// A matrix in two bands, one of them in two, and a vector.
Manifest sample() {
  return {.counters = {.step = 12,
                       .consumed_samples = 34,
                       .consumed_tokens = int64_t{1} << 53,
                       .skipped_steps = 2,
                       .skipped_in_row = 1},
          .num_updates = 10,
          .config_ini = "a = \"x y\"  # default: empty\n[B]\n",
          .tokenizer_hash = "abc",
          .code_version = "v1",
          .layout = "tp 2",
          .world_size = 2,
          .epoch = 3,
          .order_samples = 999,
          .dtype = DType::f32,
          .tensors = {{"matrix", {6, 4}}, {"vector", {5}}},
          .shards = {{"shard_00000.h5",
                      5000,
                      123,
                      {block_of("matrix", {0, 0}, {6, 1}, 1000),
                       block_of("vector", {0, 0}, {5, 1}, 2000)}},
                     {"shard_00001.h5",
                      6000,
                      ~uint64_t{0},
                      {block_of("matrix", {0, 1}, {2, 3}, 1000),
                       block_of("matrix", {2, 1}, {4, 3}, 2000)}}},
          .index_bytes = 4321,
          .index_digest = 0xfedcba9876543210};
}

std::string damage_of(const std::string& text) {
  return failure_of<CheckpointDamage>([&] { parse_manifest(text, kPath); });
}
/// Of the sample after `change`.
template <class Change>
std::string damage_after(Change&& change) {
  Json json = Json::parse(manifest_json(sample()));
  change(json);
  return damage_of(json.dump());
}
const auto kNamed = HasSubstr(kPath);

TEST(Manifest, ComesBackAsItWas) {
  Manifest manifest = sample();
  EXPECT_EQ(parse_manifest(manifest_json(manifest), kPath), manifest);
  manifest.dtype = DType::f64;
  manifest.config_ini = "path = \"\xc3\xa4\"\n";
  EXPECT_EQ(parse_manifest(manifest_json(manifest), kPath), manifest);
  EXPECT_EQ(parse_shard(shard_json(manifest.shards[1])), manifest.shards[1]);
  EXPECT_EQ(manifest.data_bytes(), (24 + 5) * 3 * 8);
  EXPECT_EQ(manifest.find("vector")->shape, Shape{5});
  EXPECT_EQ(manifest.find("vecto"), nullptr);
}

TEST(Manifest, BytesThatAreNotTextDoNotLoseACheckpoint) {
  Manifest manifest = sample();
  manifest.config_ini = "run-dir = \"\xff\xfe\"\n";
  EXPECT_EQ(parse_manifest(manifest_json(manifest), kPath).counters, manifest.counters);
}

TEST(Manifest, CutShortAtAnyLengthIsDamage) {
  const std::string text = manifest_json(sample());
  for (size_t length = 0; length + 2 < text.size(); ++length)  // the last two: "}" and a line end
    ASSERT_THAT(damage_of(text.substr(0, length)), kNamed) << length;
  EXPECT_EQ(damage_of(text), "no such failure");
}

/// All places in `json`, as pointers.
std::vector<Json::json_pointer> places_in(const Json& json) {
  std::vector<Json::json_pointer> places;
  const Json flat = json.flatten();
  for (const auto& [pointer, value] : flat.items()) {
    // And every list and object on the way to it.
    for (Json::json_pointer place(pointer); !place.empty(); place = place.parent_pointer())
      if (std::ranges::find(places, place) == places.end()) places.push_back(place);
  }
  return places;
}

TEST(Manifest, EveryFieldIsNeeded) {
  const Json whole = Json::parse(manifest_json(sample()));
  for (const auto& place : places_in(whole)) {
    Json json = whole;
    Json& parent = json.at(place.parent_pointer());
    if (parent.is_array())
      parent.erase(std::stoul(place.back()));
    else
      parent.erase(place.back());
    ASSERT_THAT(damage_of(json.dump()), kNamed) << "without " << place.to_string();
  }
}

TEST(Manifest, EveryFieldOfAnotherTypeIsDamage) {
  const Json whole = Json::parse(manifest_json(sample()));
  const std::vector<Json> others{nullptr,       true,           1.5, "x",
                                 Json::array(), Json::object(), -1,  Json::array({1, 2, 3, 4, 5})};
  for (const auto& place : places_in(whole))
    for (const Json& other : others) {
      Json json = whole;
      if (json.at(place).is_string() && other.is_string()) continue;
      json.at(place) = other;
      ASSERT_THAT(damage_of(json.dump()), kNamed) << place.to_string() << " = " << other;
    }
}

TEST(Manifest, NumbersOutOfRangeAreDamage) {
  const Json whole = Json::parse(manifest_json(sample()));
  const std::vector<Json> others{std::numeric_limits<int64_t>::min(),
                                 std::numeric_limits<uint64_t>::max(), 1e300, -1e300};
  for (const auto& place : places_in(whole)) {
    if (!whole.at(place).is_number()) continue;
    for (const Json& other : others) {
      Json json = whole;
      json.at(place) = other;
      ASSERT_THAT(damage_of(json.dump()), kNamed) << place.to_string() << " = " << other;
    }
    // Huge but whole: a counter may be; nothing that counts bytes or elements of blocks.
    const std::string name = place.to_string();
    const bool is_place = name.find("/shards/") == 0 || name.find("/tensors/") == 0;
    Json json = whole;
    json.at(place) = std::numeric_limits<int64_t>::max();
    const bool file_size = name.ends_with("/bytes");
    if (is_place && !file_size) {
      ASSERT_THAT(damage_of(json.dump()), kNamed) << name;
    } else {
      ASSERT_EQ(damage_of(json.dump()), "no such failure") << name;
    }
  }
}

TEST(Manifest, NamesAreOnlyNames) {
  for (const char* name :
       {"", "/etc/passwd", "../other/shard_00000.h5", "a/b", "..", ".", ".hidden", "/"})
    EXPECT_THAT(damage_after([&](Json& json) { json["shards"][0]["file"] = name; }),
                AllOf(kNamed, HasSubstr("not the name of a shard")))
        << name;
  EXPECT_THAT(damage_after([](Json& json) { json["tensors"][0]["name"] = ""; }),
              HasSubstr("no name"));
  EXPECT_THAT(damage_after([](Json& json) { json["format"] = "phalanx checkpoint 2"; }),
              HasSubstr("phalanx checkpoint 2"));
  EXPECT_THAT(damage_after([](Json& json) { json["dtype"] = "bf16"; }), HasSubstr("bf16"));
  EXPECT_THAT(damage_after([](Json& json) { json["world_size"] = 0; }), HasSubstr("world_size"));
  for (const char* checksum :
       {"", "123", "00000000000000zz", "00000000000000AB", "-000000000000001", "00000000000000001"})
    EXPECT_THAT(damage_after([&](Json& json) { json["shards"][0]["frame_checksum"] = checksum; }),
                AllOf(kNamed, HasSubstr("not a checksum")))
        << checksum;
}

TEST(Manifest, ListsAreInOrderWithoutRepetition) {
  EXPECT_THAT(damage_after([](Json& json) { std::swap(json["tensors"][0], json["tensors"][1]); }),
              HasSubstr("out of order"));
  EXPECT_THAT(damage_after([](Json& json) { std::swap(json["shards"][0], json["shards"][1]); }),
              HasSubstr("out of order"));
  EXPECT_THAT(damage_after([](Json& json) { json["shards"][1]["file"] = "shard_00000.h5"; }),
              HasSubstr("shard_00000.h5 appears twice"));
  EXPECT_THAT(damage_after([](Json& json) { json["tensors"][1] = json["tensors"][0]; }),
              HasSubstr("matrix appears twice"));
}

TEST(Manifest, BlocksCoverTheirTensorsOnce) {
  const auto block = [](Json& json, int shard, int number) -> Json& {
    return json["shards"][static_cast<size_t>(shard)]["blocks"][static_cast<size_t>(number)];
  };
  const auto remove = [](Json& json, int shard, size_t number) {
    json["shards"][static_cast<size_t>(shard)]["blocks"].erase(number);
  };
  EXPECT_THAT(damage_after([&](Json& json) { remove(json, 1, 0); }),
              HasSubstr("the blocks of matrix have 18 elements or more, expected 24"));
  EXPECT_THAT(damage_after([&](Json& json) { json["shards"].erase(0); }), HasSubstr("matrix"));
  EXPECT_THAT(damage_after([&](Json& json) { json["shards"].clear(); }), HasSubstr("matrix"));
  EXPECT_THAT(damage_after([&](Json& json) { json["tensors"].erase(1); }),
              HasSubstr("a block of vector, which is not in the list"));
  EXPECT_THAT(damage_after([&](Json& json) { block(json, 0, 1)["tensor"] = "other"; }),
              HasSubstr("a block of other"));
  // The same number of elements, but two blocks over each other.
  EXPECT_THAT(damage_after([&](Json& json) {
                block(json, 1, 1)["offset"] = {1, 1};
              }),
              HasSubstr("two blocks of matrix overlap"));
  EXPECT_THAT(damage_after([&](Json& json) {
                block(json, 0, 0)["offset"] = {0, 1};
              }),
              HasSubstr("two blocks of matrix overlap"));
  EXPECT_THAT(damage_after([&](Json& json) {
                block(json, 1, 0)["size"] = {3, 2};
              }),
              HasSubstr("overlap"));
  EXPECT_THAT(damage_after([&](Json& json) {
                block(json, 1, 0)["size"] = {6, 1};
                block(json, 1, 1)["size"] = {3, 4};
                block(json, 1, 1)["offset"] = {0, 0};
              }),
              HasSubstr("overlap"));
  // Outside of the tensor, outside of the file.
  EXPECT_THAT(damage_after([&](Json& json) {
                block(json, 1, 1)["offset"] = {3, 1};
              }),
              HasSubstr("lies outside of [6, 4]"));
  EXPECT_THAT(damage_after([&](Json& json) {
                block(json, 1, 1)["size"] = {0, 3};
              }),
              HasSubstr("lies outside"));
  EXPECT_THAT(damage_after([&](Json& json) { block(json, 1, 1)["place"][2] = 6000 - 47; }),
              HasSubstr("behind the end of shard_00001.h5"));
  EXPECT_EQ(damage_after([&](Json& json) { block(json, 1, 1)["place"][2] = 6000 - 48; }),
            "no such failure");
  EXPECT_THAT(damage_after([&](Json& json) { json["shards"][1]["bytes"] = 23; }),
              HasSubstr("larger than shard_00001.h5"));
}

// Products of sizes must not leave 64 bits, nor must reading take memory that the file did not.
TEST(Manifest, HugeShapesAreDamage) {
  const int64_t most = (int64_t{1} << 31) - 1;
  EXPECT_THAT(damage_after([&](Json& json) {
                json["tensors"][0]["shape"] = {most + 1, 1};
              }),
              HasSubstr("matrix has a dim"));
  EXPECT_THAT(damage_after([&](Json& json) {
                json["tensors"][0]["shape"] = {most, most};
              }),
              HasSubstr("elements"));
  EXPECT_THAT(damage_after([&](Json& json) {
                json["tensors"][0]["shape"] = {0, 4};
              }),
              HasSubstr("matrix has a dim of 0"));
  EXPECT_THAT(damage_after([&](Json& json) { json["tensors"][0]["shape"] = {2, 3, 4}; }), kNamed);
  EXPECT_THAT(damage_after([&](Json& json) { json["tensors"][0]["shape"] = Json::array(); }),
              kNamed);
}

TEST(Manifest, DeepNestingIsDamageAndNoCrash) {
  constexpr size_t kDepth = 1000000;
  const std::string deep = std::string(kDepth, '[') + std::string(kDepth, ']');
  EXPECT_THAT(damage_of(deep), kNamed);
  std::string text = manifest_json(sample());
  const std::string field = "\"step\": 12";
  text.replace(text.find(field), field.size(), "\"step\": " + deep);
  EXPECT_THAT(damage_of(text), kNamed);
}

TEST(Manifest, OtherTextsAreDamage) {
  for (const char* text : {"", " ", "null", "[]", "{}", "{\"format\": 1}", "\xff\xfe",
                           "{\"format\"", "\"phalanx checkpoint 1\"", "{\"step\": \"\xff\"}"})
    EXPECT_THAT(damage_of(text), kNamed) << text;
  EXPECT_THAT(damage_of(manifest_json(sample()) + "x"), kNamed);
  EXPECT_THAT(damage_of(std::string("\0", 1) + manifest_json(sample())), kNamed);
}

TEST(Committed, FitsItsManifestOnly) {
  const TemporaryFolder folder;
  const std::string text = manifest_json(sample());
  const auto damage = [&] {
    return failure_of<CheckpointDamage>([&] { read_checkpoint_manifest(folder / "."); });
  };
  EXPECT_THAT(damage(), HasSubstr("COMMITTED is missing"));
  spit(folder / "COMMITTED", committed_text(12, text));
  EXPECT_THAT(damage(), HasSubstr("manifest.json is missing"));
  spit(folder / "manifest.json", text);
  EXPECT_EQ(read_checkpoint_manifest(folder / "."), sample());
  spit(folder / "manifest.json", text + "\n");
  EXPECT_THAT(damage(), HasSubstr("COMMITTED does not fit"));
  spit(folder / "manifest.json", text);
  for (const std::string& other : {std::string(), std::string("yes\n"), committed_text(13, text),
                                   committed_text(12, text) + " "}) {
    spit(folder / "COMMITTED", other);
    EXPECT_THAT(damage(), HasSubstr("COMMITTED does not fit")) << other;
  }
}

}  // namespace
}  // namespace phalanx::test
