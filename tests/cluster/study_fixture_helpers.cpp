// Points trained in threads.
#include <filesystem>
#include <fstream>

#include "core/train/trainer.h"
#include "kernels/cpu/cpu_backend.h"
#include "launch/options.h"
#include "parallel/thread_process_group.h"
#include "tests/cluster/study_fixture.h"

namespace phalanx::test {

std::vector<std::string> small_run_arguments() {
  return {"--mock-data", "--num-layers",          "2", "--hidden-size", "32", "--ffn-hidden-size",
          "48",          "--num-attention-heads", "2", "--phd-copies",  "2",  "--phd-window",
          "4",           "--phd-chunk",           "8", "--seq-length",  "16", "--train-iters",
          "9",           "--global-batch-size",   "8", "--peak-tflops", "1",  "--threads",
          "1",           "--lr-warmup-iters",     "2", "--preflight",   "off"};
}

StudyNeeds plain_needs() {
  return {
      .configuration =
          [](const std::vector<std::string>& arguments) {
            RunConfig config;
            SourceOptions sources;
            OptionTable table;
            visit_fields(sources, table);
            visit_fields(config, table);
            throw_problems(apply_options(arguments, table, config));
            return config;
          },
      .problems = [](const StudyPoint&, const RunConfig&) { return std::vector<std::string>(); }};
}

Study small_study(const std::string& folder, const std::string& layouts, bool weak) {
  Study study{.folder = folder,
              .weak = weak,
              .nodes = "1,2,4",
              .layouts = layouts,
              .train_arguments = small_run_arguments(),
              .command = {"phalanx", "study", "--nodes", "1,2,4", "--layouts", layouts},
              .version = "0.1.0",
              .host = "test",
              .created = 1.7e9};
  const StudyOptions options{
      .nodes = study.nodes, .strong = !weak, .weak = weak, .layouts = layouts, .study_dir = folder};
  study.points = study_points(options, 1, study.train_arguments, plain_needs());
  return study;
}

void train_point(const Study& study, const StudyPoint& point) {
  const RunConfig config = plain_needs().configuration(point.arguments);
  std::filesystem::create_directories(study.run_folder(point));
  run_thread_ranks(static_cast<int>(point.ranks), [&](ThreadRank& rank) {
    const DeviceMesh mesh(config.parallel, rank.size());
    ProcessGroups groups = rank.process_groups(mesh);
    CpuBackend backend(1);
    Trainer(config, backend, groups).run(config_ini(config));
  });
}

void append_records(const std::string& path, const std::vector<nlohmann::json>& records) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream file(path, std::ios::app);
  for (const nlohmann::json& record : records) file << record.dump() << "\n";
}

}  // namespace phalanx::test
