// The checks of process groups under mpirun. Exits non-zero if any rank fails. With `--fail` the
// last rank throws while the others wait for it: the whole job must end, not hang.
#include <string_view>

#include "kernels/base/log.h"
#include "parallel/mpi_process_group.h"
#include "parallel/process_groups.h"
#include "tests/parallel/group_checks.h"
#include "tests/parallel/pipeline_checks.h"

namespace phalanx::test {
namespace {

void check_pieces(const MpiSession& session) {
  const std::string name = "pieces";
  MPI_Comm communicator = MPI_COMM_NULL;
  mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &communicator), {name, "creation"});
  MpiProcessGroup group(name, communicator, 50);
  check(group.rank() == session.rank() && group.size() == session.size(), "wrong rank or size");
  check_all_reduce<float>(group);
  check_all_gather<BFloat16>(group);
  check_reduce_scatter<BFloat16>(group);
  check_async(group);
  check_all_to_all(group);
  check_broadcast(group);
  check_exchange(group);
  check_channels(group);
  check_ring(group);
}

/// Every schedule, on as many stages as there are ranks.
void check_pipelines(ProcessGroup& pp) {
  for (const PipelineCase& run : pipeline_cases(pp.size(), 3)) check_pipeline(pp, run);
  const BeforeAction sleep = random_sleep(static_cast<uint64_t>(pp.rank()));
  for (const PipelineCase& run : pipeline_cases(pp.size(), 2)) check_pipeline(pp, run, sleep);
}

/// With a code made by hand: a provoked failure leaves MPI in an undefined state.
void check_message_of_failure() {
  const std::string name = "cut_short";
  std::string text;
  try {
    mpi_check(MPI_ERR_TRUNCATE, {name, "exchange"});
  } catch (const Error& error) {
    text = error.what();
  }
  for (const char* word : {"group cut_short", "exchange", "TRUNCATE"})
    check(text.find(word) != std::string::npos, "no '", word, "' in: ", text);
}

void run(const MpiSession& session, bool fail_on_purpose) {
  ProcessGroups groups = make_mpi_process_groups(DeviceMesh(ParallelConfig{}, session.size()));
  if (fail_on_purpose) {
    if (session.rank() == session.size() - 1) fail("failing on purpose");
    groups.world->barrier();
  }
  check_all_collectives(*groups.world);
  check_all_collectives(*groups.tp);
  check_pieces(session);
  check_pipelines(*groups.world);
  if (session.size() % 2 == 0) {
    const ParallelConfig config{.tensor_model_parallel_size = 2};
    const ProcessGroups cut = make_mpi_process_groups(DeviceMesh(config, session.size()));
    check(cut.tp->size() == 2 && cut.dp->size() == session.size() / 2, "wrong group sizes");
    check_all_collectives(*cut.tp);
    check_all_collectives(*cut.dp);
  }
  check_message_of_failure();
}

}  // namespace
}  // namespace phalanx::test

int main(int argc, char** argv) {
  phalanx::MpiSession session(&argc, &argv);
  try {
    phalanx::test::run(session, argc > 1 && std::string_view(argv[1]) == "--fail");
  } catch (const std::exception& error) {
    phalanx::log_info("rank {}: {}", session.rank(), error.what());
    phalanx::MpiSession::abort(1);
  }
  return 0;
}
