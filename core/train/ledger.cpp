// Writing and reading records of a run's life.
#include "core/train/ledger.h"

#include <chrono>
#include <cstdlib>
#include <fstream>

#include "core/run_files.h"
#include "kernels/base/log.h"

namespace phalanx {

Ledger::Ledger(const std::string& run_dir) : file_(ledger_path(run_dir)) {}

void Ledger::write(const std::string& event, const nlohmann::ordered_json& fields) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  nlohmann::ordered_json record{{"time", now.count()}, {"event", event}};
  if (const char* job = std::getenv("SLURM_JOB_ID")) {
    const char* restart = std::getenv("SLURM_RESTART_COUNT");  // absent at the first start
    record["job"] = job;
    record["restart"] = restart == nullptr ? 0 : std::atoi(restart);
  }
  record.update(fields);
  using Handler = nlohmann::ordered_json::error_handler_t;
  if (file_.append(record.dump(-1, ' ', false, Handler::replace) + "\n") || told_) return;
  log_info("cannot write {}: records of this run are lost; is the disk full?", file_.path());
  told_ = true;
}

std::vector<nlohmann::json> read_records(const std::string& path) {
  std::vector<nlohmann::json> records;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    nlohmann::json record = nlohmann::json::parse(line, nullptr, false);
    if (record.is_object()) records.push_back(std::move(record));
  }
  return records;
}

std::vector<nlohmann::json> read_ledger(const std::string& run_dir) {
  return read_records(ledger_path(run_dir));
}

}  // namespace phalanx
