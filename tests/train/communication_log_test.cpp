// Communication in metrics.jsonl against the formula of ZeRO-1, and the replica check of a run.
#include "core/train/communication_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/train/trainer.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/train/tiny_run.h"

namespace phalanx {
namespace {

using Json = nlohmann::json;

/// What a rank of a finished run has: for the formulas.
struct Sizes {
  int64_t numel = 0;  // weights
  int64_t own = 0;    // of rank 0's shards
  int64_t num_buckets = 0;
};

/// Step records of a run; `sizes` of rank 0.
std::vector<Json> records_of(const RunConfig& config, int num_ranks, Sizes& sizes) {
  run_thread_ranks(num_ranks, [&](ThreadRank& rank) {
    const DeviceMesh mesh(config.parallel, rank.size());
    ProcessGroups groups = rank.process_groups(mesh);
    CpuBackend backend(1);
    Trainer trainer(config, backend, groups);
    trainer.run("seed = 1\n");
    if (rank.rank() != 0) return;
    const ParameterStore& store = trainer.parameters();
    sizes.numel = store.numel();
    for (const Bucket& bucket : make_buckets(
             store, {.bucket_size = config.parallel.ddp_bucket_size, .dp_cp = num_ranks})) {
      sizes.own += bucket.counts[0];
      ++sizes.num_buckets;
    }
  });
  std::ifstream file(config.training.run_dir + "/metrics.jsonl");
  std::vector<Json> records;
  for (std::string line; std::getline(file, line);) {
    Json record = Json::parse(line);
    if (record.contains("lm_loss")) records.push_back(std::move(record));
  }
  return records;
}

RunConfig short_run(const std::string& name) {
  RunConfig config = tiny_run();
  config.training.run_dir = fresh_folder(name);
  config.training.train_iters = 4;
  config.training.eval_interval = 2;
  config.parallel.ddp_bucket_size = 3000;
  return config;
}

// Per step every rank hands in all its gradients (f32) once and contributes the weights it updated
// (in the compute dtype) once, in as many calls as there are buckets.
TEST(CommunicationLog, DataParallelRunsFollowTheFormulaOfShardedOptimizers) {
  for (const ComputePrecision precision : {ComputePrecision::fp32, ComputePrecision::bf16}) {
    RunConfig config = short_run("communication");
    config.training.precision = precision;
    const int64_t weight_bytes = dtype_bytes(compute_dtype(precision));
    Sizes sizes;
    const std::vector<Json> records = records_of(config, 2, sizes);
    ASSERT_EQ(records.size(), 4U);
    ASSERT_GT(sizes.num_buckets, 2);
    for (const Json& record : records) {
      const Json& groups = record.at("communication");
      const Json& group = groups.at("dp_cp");
      EXPECT_EQ(group.at("reduce_scatter").at("bytes"), 4 * sizes.numel);
      EXPECT_EQ(group.at("reduce_scatter").at("calls"), sizes.num_buckets);
      EXPECT_EQ(group.at("all_gather").at("bytes"), weight_bytes * sizes.own);
      EXPECT_EQ(group.at("all_gather").at("calls"), sizes.num_buckets);
      EXPECT_GE(group.at("wait_seconds"), 0.0);
      EXPECT_FALSE(group.contains("all_to_all"));
      EXPECT_TRUE(groups.contains("dp"));
      EXPECT_FALSE(groups.contains("tp"));
    }
  }
}

TEST(CommunicationLog, OneRankHasNone) {
  Sizes sizes;
  for (const Json& record : records_of(short_run("communication_alone"), 1, sizes))
    EXPECT_FALSE(record.contains("communication"));
}

TEST(CommunicationLog, CountsFromTheCallBefore) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    ProcessGroups groups =
        rank.process_groups(DeviceMesh({.tensor_model_parallel_size = 2}, rank.size()));
    groups.tp->barrier();  // before the log: not its business
    CommunicationLog log(groups);
    std::vector<float> x(6);
    groups.tp->all_reduce(cpu_tensor(x.data(), {6}), ReduceOp::sum);
    groups.tp->all_reduce(cpu_tensor(x.data(), {2}), ReduceOp::sum);
    const Json first = Json::parse(communication_json(log.take()));
    EXPECT_EQ(first["tp"]["all_reduce"], Json({{"calls", 2}, {"bytes", 32}}));
    EXPECT_FALSE(first["tp"].contains("barrier"));
    EXPECT_FALSE(first.contains("dp"));
    EXPECT_FALSE(Json::parse(communication_json(log.take()))["tp"].contains("all_reduce"));
  });
}

// The weights of data-parallel ranks are gathered anew after every update, so a difference outlives
// a step only if the step was skipped: here because one weight is not a number.
TEST(ReplicaCheckOfARun, StopsItOnEveryRankAtTheInterval) {
  RunConfig config = short_run("replica_check");
  config.training.replica_check_interval = 2;
  std::vector<std::string> errors(3);
  config.training.global_batch_size = 6;
  run_thread_ranks(3, [&](ThreadRank& rank) {
    ProcessGroups groups = rank.process_groups(DeviceMesh(config.parallel, rank.size()));
    CpuBackend backend(1);
    Trainer trainer(config, backend, groups);
    const ParameterStore& store = trainer.parameters();
    backend.fill(store[0].value, std::numeric_limits<double>::quiet_NaN());
    if (rank.rank() == 1) store[3].value.as<float>()[0] += 1;
    trainer.step();  // 1: not looked at
    EXPECT_TRUE(trainer.last_metrics().skipped);
    try {
      trainer.step();
    } catch (const Error& error) {
      errors[static_cast<size_t>(rank.rank())] = error.what();
    }
    EXPECT_THAT(errors[static_cast<size_t>(rank.rank())],
                testing::AllOf(testing::HasSubstr(store[3].spec.name),
                               testing::HasSubstr("3 copies, odd: rank 1 (host ")));
  });
}

}  // namespace
}  // namespace phalanx
