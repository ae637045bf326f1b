// Reading a file of JSON lines from its end, and in one pass.
#include "cluster/metrics_tail.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>

namespace phalanx {
namespace {

/// What a step's record says of other things than where its time went: most of a long file.
constexpr std::array kNotOfTime{"communication", "consumed_samples",   "consumed_tokens",
                                "z_loss",        "grad_norm",          "learning_rate",
                                "mfu",           "skipped_total",      "loss_tokens",
                                "router_z_loss", "router_balance_loss"};

}  // namespace

Records read_last_records(const std::string& path, int64_t bytes) {
  Records records;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return records;
  const int64_t size = file.tellg();
  const int64_t begin = std::max<int64_t>(0, size - bytes);
  file.seekg(begin);
  std::string line;
  if (begin > 0) std::getline(file, line);  // the rest of a line that began before
  while (std::getline(file, line)) {
    Record record = Record::parse(line, nullptr, false);
    if (record.is_object()) records.push_back(std::move(record));
  }
  return records;
}

Records read_step_records(const std::string& path) {
  Records records;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    Record record = Record::parse(line, nullptr, false);
    if (!record.is_object()) continue;
    for (const char* name : kNotOfTime) record.erase(name);
    records.push_back(std::move(record));
  }
  return records;
}

int64_t highest_iteration(const std::string& path) {
  const std::string key = "\"iteration\":";
  int64_t highest = 0;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (const auto at = line.find(key); at != std::string::npos)
      highest =
          std::max<int64_t>(highest, std::strtoll(line.c_str() + at + key.size(), nullptr, 10));
  return highest;
}

}  // namespace phalanx
