// Texts of Slurm as values, times and memory as users write them.
#include "cluster/slurm_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cluster/node_failures.h"
#include "tests/cluster/fake_slurm.h"

namespace phalanx {
namespace {

using testing::ElementsAre;

TEST(SlurmText, TimeLimits) {
  EXPECT_EQ(parse_time_limit("30"), 1800);
  EXPECT_EQ(parse_time_limit("30:15"), 1815);
  EXPECT_EQ(parse_time_limit("4:00:00"), 4 * 3600);
  EXPECT_EQ(parse_time_limit("1-12"), 36 * 3600);
  EXPECT_EQ(parse_time_limit("1-12:30"), 36 * 3600 + 1800);
  EXPECT_EQ(parse_time_limit("1-12:30:05"), 36 * 3600 + 1805);
  EXPECT_EQ(parse_time_limit("UNLIMITED"), 0);
  for (const char* wrong :
       {"", "x", "1:2:3:4", "-5", "1-", "1-2-3", "4h", "1:", "99999999999999999999"})
    EXPECT_EQ(parse_time_limit(wrong), std::nullopt) << wrong;
  for (const int64_t seconds : {60, 1800, 4 * 3600, 36 * 3600 + 1805})
    EXPECT_EQ(parse_time_limit(time_limit_text(seconds)), seconds);
}

TEST(SlurmText, Memory) {
  EXPECT_EQ(parse_memory("4000"), 4000);
  EXPECT_EQ(parse_memory("4000M"), 4000);
  EXPECT_EQ(parse_memory("180G"), 180 * 1024);
  EXPECT_EQ(parse_memory("2T"), 2 * 1024 * 1024);
  EXPECT_EQ(parse_memory("2048K"), 2);
  for (const char* wrong : {"", "G", "1.5G", "lots", "-1"})
    EXPECT_EQ(parse_memory(wrong), std::nullopt) << wrong;
}

TEST(SlurmText, Job) {
  const SlurmJob job = parse_job(test::job_line("7", "RUNNING", 2));
  EXPECT_EQ(job.id, "7");
  EXPECT_EQ(job.state, "RUNNING");
  EXPECT_EQ(job.restarts, 2);
  EXPECT_EQ(job.node_list, "node[1-2]");
  EXPECT_EQ(job.run_seconds, 100);
  EXPECT_EQ(job.time_limit_seconds, 600);
  EXPECT_EQ(job.start_time - job.submit_time, 30);
  EXPECT_TRUE(job.dependency.empty());
  EXPECT_TRUE(job.is_active());
  EXPECT_FALSE(job.preempted);
  const SlurmJob waiting = parse_job(
      "JobId=8 JobState=PENDING StartTime=Unknown TimeLimit=UNLIMITED NodeList= NumNodes=2-4");
  EXPECT_EQ(waiting.start_time, 0);
  EXPECT_EQ(waiting.time_limit_seconds, 0);
  EXPECT_EQ(waiting.num_nodes, 2);
  EXPECT_TRUE(waiting.node_list.empty());
  for (const char* ended :
       {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "PREEMPTED"})
    EXPECT_FALSE(parse_job(test::job_line("7", ended)).is_active()) << ended;
  for (const char* active : {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"})
    EXPECT_TRUE(parse_job(test::job_line("7", active)).is_active()) << active;
}

TEST(SlurmText, Nodes) {
  const auto node = parse_node("n7|gpu|gpu*|128|515000|mixed|1-00:00:00|1-16|gpu:h100:8");
  ASSERT_TRUE(node);
  EXPECT_EQ(node->name, "n7");
  EXPECT_EQ(node->partition, "gpu");
  EXPECT_TRUE(node->in_default_partition);
  EXPECT_EQ(node->cpus, 128);
  EXPECT_EQ(node->memory_mib, 515000);
  EXPECT_EQ(node->time_limit_seconds, 86400);
  EXPECT_EQ(node->most_nodes, 16);
  EXPECT_EQ(node->generic, "gpu:h100:8");
  EXPECT_FALSE(node->is_out());
  const auto with_state = [](const std::string& state) {
    return parse_node("n|p|p|1|1|" + state + "|infinite|1-infinite|(null)")->is_out();
  };
  for (const char* out : {"down", "down*", "idle*", "drained", "draining", "failing", "unknown"})
    EXPECT_TRUE(with_state(out)) << out;
  for (const char* in : {"idle", "allocated", "mixed", "completing", "reserved", "idle~"})
    EXPECT_FALSE(with_state(in)) << in;
  EXPECT_FALSE(parse_node("sinfo: error"));
}

TEST(SlurmText, MpiList) {
  EXPECT_THAT(parse_mpi_list("MPI plugin types are...\n\tpmix\n\tnone\n\tpmi2\n"
                             "specific pmix plugin versions available: pmix_v3,pmix_v4\n"),
              ElementsAre("pmix", "none", "pmi2", "pmix_v3", "pmix_v4"));
}

TEST(SlurmText, NodeLists) {
  EXPECT_THAT(expand_node_list("node[1-3,07],other"),
              ElementsAre("node1", "node2", "node3", "node07", "other"));
  EXPECT_THAT(expand_node_list("n[098-101]"), ElementsAre("n098", "n099", "n100", "n101"));
  EXPECT_THAT(expand_node_list("a,b"), ElementsAre("a", "b"));
  EXPECT_THAT(expand_node_list("broken[1-"), ElementsAre("broken[1-"));
  EXPECT_THAT(expand_node_list(""), ElementsAre());
}

}  // namespace
}  // namespace phalanx
