// A full disk, as a limit on the size of files, costs whole records and nothing else.
#include "core/train/record_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

std::string content(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// For the length of a test.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
};

TEST(RecordFile, KeepsWholeRecordsOnly) {
  const std::string path = testing::TempDir() + "/phalanx_records";
  std::filesystem::remove(path);
  std::signal(SIGXFSZ, SIG_IGN);
  RecordFile file(path);
  EXPECT_TRUE(file.append("first\n"));
  {
    const FileSizeLimit limit(10);  // the second would fit by four bytes
    EXPECT_FALSE(file.append("second\n"));
  }
  EXPECT_EQ(content(path), "first\n");
  EXPECT_TRUE(file.append("third\n"));
  EXPECT_TRUE(RecordFile(path).append("fourth\n"));
  EXPECT_EQ(content(path), "first\nthird\nfourth\n");
}

TEST(RecordFile, SaysWhatCannotBeOpened) {
  EXPECT_THROW(RecordFile("/no such folder/records"), Error);
}

}  // namespace
}  // namespace phalanx
