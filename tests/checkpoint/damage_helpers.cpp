// Spoiling files and telling what must be said of it.
#include <fmt/format.h>

#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "kernels/base/error.h"
#include "tests/checkpoint/damage.h"

namespace phalanx::test {
namespace {

namespace fs = std::filesystem;

void put(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
}

void append_to(std::vector<Damage>& list, std::vector<Damage> more) {
  std::move(more.begin(), more.end(), std::back_inserter(list));
}

bool is_shard(const Manifest& manifest, const std::string& file) {
  return std::ranges::any_of(manifest.shards,
                             [&](const auto& shard) { return shard.file == file; });
}

/// Tensors with their parts' prefixes whose bytes differ; `frame` becomes whether other bytes do.
std::set<std::string> changed_tensors(const std::string& before, std::string after,
                                      const SavedShard& shard, const Manifest& manifest,
                                      bool& frame) {
  std::set<std::string> names;
  for (const SavedBlock& block : shard.blocks)
    for (size_t part = 0; part < kNumParts; ++part) {
      const auto place = static_cast<size_t>(block.place[part]);
      const auto bytes = static_cast<size_t>(block.numel() * dtype_bytes(manifest.dtype));
      if (before.compare(place, bytes, after, place, bytes) == 0) continue;
      names.insert(kPartPrefix[part] + block.tensor);
      after.replace(place, bytes, before, place, bytes);
    }
  frame = before != after;
  return names;
}

}  // namespace

ScratchFolder::ScratchFolder() {
  const bool memory = fs::is_directory("/dev/shm");
  std::string name =
      (memory ? fs::path("/dev/shm") : fs::temp_directory_path()) / "phalanx_damage_XXXXXX";
  check(::mkdtemp(name.data()) != nullptr, "cannot make the folder ", name);
  path_ = name;
}

Files read_files(const std::string& folder) {
  Files files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream stream(entry.path(), std::ios::binary);
    files[entry.path().filename().string()] = {std::istreambuf_iterator<char>(stream), {}};
  }
  return files;
}

void Damage::apply(const std::string& folder) const {
  for (const auto& [file, change] : changes) {
    const std::string path = folder + "/" + file;
    if (change.kind != Change::Kind::content) fs::remove_all(path);
    switch (change.kind) {
      case Change::Kind::content:
        put(path, change.content);
        break;
      case Change::Kind::missing:
        break;
      case Change::Kind::folder:
        fs::create_directory(path);
        put(path + "/file", "x");
        break;
      case Change::Kind::dangling_link:
        fs::create_symlink("nowhere", path);
        break;
      case Change::Kind::link_to_itself:
        fs::create_symlink(file, path);
        break;
      case Change::Kind::pipe:
        check(::mkfifo(path.c_str(), 0600) == 0, "cannot make the pipe ", path);
        break;
    }
  }
}

void Damage::undo(const std::string& folder, const Files& files) const {
  for (const auto& [file, change] : changes) {
    const std::string path = folder + "/" + file;
    if (change.kind != Change::Kind::content) fs::remove_all(path);
    put(path, files.at(file));
  }
}

Damage DamageMaker::flip(const std::string& file, int64_t byte, int bit) {
  if (bit < 0) bit = static_cast<int>(draw(8));
  std::string text = content(file);
  text[static_cast<size_t>(byte)] = static_cast<char>(text[static_cast<size_t>(byte)] ^ (1 << bit));
  return {fmt::format("{}: bit {} of byte {} flipped", file, bit, byte),
          {{file, {.content = text}}}};
}

std::vector<Damage> DamageMaker::flips(const std::string& file, int count) {
  std::vector<Damage> list;
  for (int i = 0; i < count; ++i) list.push_back(flip(file, draw(std::ssize(content(file)))));
  return list;
}

std::vector<Damage> DamageMaker::truncations(const std::string& file, int count) {
  const int64_t size = std::ssize(content(file));
  std::vector<int64_t> lengths{0, size - 1};
  for (int i = 0; i < count; ++i) lengths.push_back(draw(size));
  std::vector<Damage> list;
  for (const int64_t length : lengths)
    list.push_back({fmt::format("{}: cut to {} bytes", file, length),
                    {{file, {.content = content(file).substr(0, static_cast<size_t>(length))}}}});
  return list;
}

Damage DamageMaker::append(const std::string& file, const std::string& bytes) const {
  return {fmt::format("{}: {} bytes appended", file, bytes.size()),
          {{file, {.content = content(file) + bytes}}}};
}

std::vector<Damage> DamageMaker::zeros(const std::string& file, int count) {
  std::vector<Damage> list;
  for (int i = 0; i < count; ++i)
    for (const int64_t unit : {512, 4096, 16384}) {
      const int64_t size = std::ssize(content(file));
      const int64_t begin = draw((size + unit - 1) / unit) * unit;
      std::string text = content(file);
      std::fill_n(text.begin() + begin, std::min(unit, size - begin), '\0');
      if (text != content(file))
        list.push_back(
            {fmt::format("{}: {} zeros at {}", file, unit, begin), {{file, {.content = text}}}});
    }
  return list;
}

std::vector<Damage> DamageMaker::replacements(const std::string& file) const {
  return {{file + ": deleted", {{file, {.kind = Change::Kind::missing}}}},
          {file + ": a folder", {{file, {.kind = Change::Kind::folder}}}},
          {file + ": a dangling link", {{file, {.kind = Change::Kind::dangling_link}}}},
          {file + ": a link to itself", {{file, {.kind = Change::Kind::link_to_itself}}}},
          {file + ": a pipe", {{file, {.kind = Change::Kind::pipe}}}}};
}

Damage DamageMaker::swap(const std::string& first, const std::string& second) const {
  return {first + " and " + second + ": swapped",
          {{first, {.content = content(second)}}, {second, {.content = content(first)}}}};
}

std::vector<Damage> DamageMaker::all(const std::string& file, int count) {
  std::vector<Damage> list = flips(file, count);
  append_to(list, truncations(file, count / 8));
  append_to(list, zeros(file, count / 8));
  append_to(list, replacements(file));
  list.push_back(append(file, std::string(1, '\0')));
  list.push_back(append(file, content(file)));
  return list;
}

Expected expected_names(const Damage& damage, const Files& files, const Manifest& manifest) {
  Expected expected;
  bool tells_tensors = true;  // to those who load
  std::set<std::string> tensors;
  for (const auto& [file, change] : damage.changes) {
    expected.verify.push_back(file);
    const bool same_size =
        change.kind == Change::Kind::content && change.content.size() == files.at(file).size();
    if (!same_size || !is_shard(manifest, file)) {
      tells_tensors = false;
      continue;
    }
    for (const SavedShard& shard : manifest.shards) {
      if (shard.file != file) continue;
      bool frame = false;
      tensors.merge(changed_tensors(files.at(file), change.content, shard, manifest, frame));
      tells_tensors = tells_tensors && !frame;
    }
  }
  // Of several files the first one is enough for those who load: the checkpoint is not taken.
  expected.load = {expected.verify.front()};
  expected.verify.insert(expected.verify.end(), tensors.begin(), tensors.end());
  if (tells_tensors) expected.load = expected.verify;
  return expected;
}

}  // namespace phalanx::test
