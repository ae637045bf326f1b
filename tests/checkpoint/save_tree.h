// Small folders of checkpoints for tests: making them, and listing all that is in them.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "core/checkpoint/save_folder.h"
#include "data/file_io.h"

namespace phalanx {

/// The path of a folder that is not there yet and goes when the object goes.
class TestSave {
 public:
  TestSave()
      : root_(testing::TempDir() + "/phalanx_save_" + std::to_string(getpid())),
        path_(root_ + "/checkpoints") {
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
  }
  ~TestSave() {
    if (getpid() == owner_) std::filesystem::remove_all(root_);
  }
  const std::string& path() const { return path_; }
  std::string path(const std::string& name) const { return path_ + "/" + name; }

 private:
  pid_t owner_ = getpid();
  std::string root_;
  std::string path_;
};

inline void put_file(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}

/// A whole checkpoint folder whose shard holds `content`.
inline void fill_checkpoint(const std::string& folder, const std::string& content) {
  std::filesystem::create_directories(folder);
  put_file(folder + "/shard_00000.h5", content);
  put_file(folder + "/COMMITTED", "yes\n");
}

inline void save_checkpoint(SaveFolder& folder, int64_t iteration, const std::string& content) {
  fill_checkpoint(folder.begin(iteration), content);
  folder.commit(iteration);
}

inline std::vector<int64_t> iterations(const std::string& save) {
  std::vector<int64_t> numbers;
  for (const SaveEntry& entry : list_checkpoints(save)) numbers.push_back(entry.iteration);
  return numbers;
}

/// Iteration -> content of every complete checkpoint.
inline std::map<int64_t, std::string> contents(const std::string& save) {
  std::map<int64_t, std::string> found;
  for (const SaveEntry& entry : list_checkpoints(save))
    found[entry.iteration] = read_file(entry.path + "/shard_00000.h5");
  return found;
}

/// Relative path -> content ("/" for a folder) and time of the last change.
inline std::map<std::string, std::string> tree(const std::string& folder) {
  std::map<std::string, std::string> found;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const auto time = entry.last_write_time().time_since_epoch().count();
    const std::string path = entry.path().string();
    found[path.substr(folder.size())] =
        (entry.is_directory() ? "/" : read_file(path)) + " @" + std::to_string(time);
  }
  return found;
}

/// Names directly in `folder`, sorted.
inline std::vector<std::string> names(const std::string& folder) {
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    found.push_back(entry.path().filename().string());
  std::sort(found.begin(), found.end());
  return found;
}

template <class Failure, class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const Failure& error) {
    return error.what();
  }
  return "no such error";
}

}  // namespace phalanx
