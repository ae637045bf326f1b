// Damage: ways to spoil the files of a folder, drawn from a seed, undone afterwards.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "core/checkpoint/manifest.h"

namespace phalanx::test {

/// A folder in memory where there is one, because thousands of small files are written.
class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// The files of a folder, by name.
using Files = std::map<std::string, std::string>;
Files read_files(const std::string& folder);

/// What a file becomes.
struct Change {
  enum class Kind : uint8_t { content, missing, folder, dangling_link, link_to_itself, pipe };
  Kind kind = Kind::content;
  std::string content = {};
};

struct Damage {
  std::string what;  // for messages
  std::map<std::string, Change> changes;

  void apply(const std::string& folder) const;
  /// Puts back what `files`, the folder before, had.
  void undo(const std::string& folder, const Files& files) const;
};

/// Damages of one file each, all from one seed.
class DamageMaker {
 public:
  DamageMaker(const Files& files, uint64_t seed) : files_(files), random_(seed) {}

  Damage flip(const std::string& file, int64_t byte, int bit = -1);  // -1: any bit
  /// Any bytes of [begin, end).
  std::vector<Damage> flips(const std::string& file, int count);
  /// To nothing, to one byte less, and to lengths between.
  std::vector<Damage> truncations(const std::string& file, int count);
  Damage append(const std::string& file, const std::string& bytes) const;
  /// A zero-filled sector, page or row of pages somewhere, if that changes anything.
  std::vector<Damage> zeros(const std::string& file, int count);
  /// Missing, a folder, links that lead nowhere, a pipe.
  std::vector<Damage> replacements(const std::string& file) const;
  Damage swap(const std::string& first, const std::string& second) const;
  /// Everything above.
  std::vector<Damage> all(const std::string& file, int count);

 private:
  const std::string& content(const std::string& file) const { return files_.at(file); }
  int64_t draw(int64_t limit) {
    return std::uniform_int_distribution<int64_t>(0, limit - 1)(random_);
  }

  const Files& files_;
  std::mt19937_64 random_;
};

/// What reports must name.
struct Expected {
  std::vector<std::string> verify;
  std::vector<std::string> load;  // it looks at tensors only if all frames are whole
};
Expected expected_names(const Damage& damage, const Files& files, const Manifest& manifest);

}  // namespace phalanx::test
