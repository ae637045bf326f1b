// The checks of process groups on device tensors over NCCL, under mpirun with a GPU for each rank.
// With `--faults` also what happens to operations that fail or never end; only the emulated NCCL
// can be told to do that. With `--shared-gpu` the ranks have one GPU together, and MPI carries
// their tensors. Exits non-zero if any rank fails.
#include <cstdlib>
#include <string_view>

#include "kernels/base/log.h"
#include "kernels/make_backend.h"
#include "parallel/mpi_process_group.h"
#include "parallel/nccl/nccl_process_group.h"
#include "tests/missing_device.h"
#include "tests/parallel/group_checks.h"
#include "tests/parallel/on_device_group.h"
#include "tests/parallel/pipeline_checks.h"

namespace phalanx::test {
namespace {

void check_group(std::unique_ptr<ProcessGroup> group, Backend& backend) {
  OnDeviceGroup on_device(std::move(group), backend);
  check_all_collectives(on_device);
}

/// Every schedule, on as many stages as there are ranks.
void check_pipelines(std::unique_ptr<ProcessGroup> group, Backend& backend) {
  OnDeviceGroup pp(std::move(group), backend);
  for (const PipelineCase& run : pipeline_cases(pp.size(), 2)) check_pipeline(pp, run);
  const BeforeAction sleep = random_sleep(static_cast<uint64_t>(pp.rank()));
  for (const PipelineCase& run : pipeline_cases(pp.size(), 2)) check_pipeline(pp, run, sleep);
}

/// A device tensor with its memory.
struct Block {
  Block(Backend& ops, int64_t count)
      : owner(ops.allocate(count * dtype_bytes(DType::f32))),
        tensor{owner.get(), {count}, DType::f32, ops.device()} {}
  std::shared_ptr<void> owner;
  Tensor tensor;
};

/// Ops and collectives one after the other, with nothing between them that waits.
void check_order(ProcessGroup& group, Backend& ops) {
  const int64_t n = group.size();
  const int64_t count = 4096 * n;
  const Block x(ops, count);
  const Block sum(ops, count / n);
  const std::vector<int64_t> counts(static_cast<size_t>(n), count / n);
  const Tensor own = x.tensor.slice(group.rank() * count / n, (group.rank() + 1) * count / n);
  constexpr int kSteps = 20;
  ops.zero(sum.tensor);
  for (int step = 1; step <= kSteps; ++step) {
    ops.fill(x.tensor, step);
    const PendingWork work = group.reduce_scatter_in_place_async(x.tensor, counts);
    work->wait();
    ops.add(sum.tensor, sum.tensor, own);
    ops.fill(own, group.rank());
    group.all_gather_in_place(x.tensor, counts);
    group.all_reduce(x.tensor, ReduceOp::max);
  }
  std::vector<float> host(static_cast<size_t>(count));
  ops.download(host.data(), sum.tensor);
  const auto expected = static_cast<double>(n * kSteps * (kSteps + 1) / 2);
  for (int64_t i = 0; i < count / n; ++i)
    expect_equal(host[static_cast<size_t>(i)], expected, group, "order", i);
  ops.download(host.data(), x.tensor);
  for (int64_t i = 0; i < count; ++i)
    expect_equal(host[static_cast<size_t>(i)], static_cast<double>(i / (count / n)), group,
                 "gathered order", i);
}

std::string failure_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing failed";
}

void expect_words(const std::string& text, std::initializer_list<std::string> words) {
  for (const std::string& word : words)
    check(text.find(word) != std::string::npos, "no '", word, "' in: ", text);
}

/// The groups of all ranks as tp, with a short deadline.
ProcessGroups impatient_groups(const MpiSession& session, Backend& backend) {
  const ParallelConfig config{.tensor_model_parallel_size = session.size()};
  const DeviceMesh mesh(config, session.size());
  return make_nccl_process_groups(make_mpi_process_groups(mesh), mesh,
                                  dynamic_cast<CudaBackend&>(backend),
                                  std::chrono::milliseconds(400));
}

/// All ranks are here, whatever has failed in their groups.
void meet() {
  MPI_Barrier(MPI_COMM_WORLD);
}

/// An operation under way goes wrong as `fault` says: the wait for the device ends, and the next
/// call tells what happened.
void check_fault(const MpiSession& session, Backend& ops, const char* fault,
                 const std::string& reason) {
  const Block x(ops, 8);
  const ProcessGroups groups = impatient_groups(session, ops);
  groups.tp->all_reduce(x.tensor, ReduceOp::sum);
  ops.synchronize();
  meet();
  setenv("EMULATED_NCCL_FAULT", fault, 1);
  const std::string at_call = failure_of([&] { groups.tp->all_reduce(x.tensor, ReduceOp::sum); });
  ops.synchronize();
  const std::string later = failure_of([&] { groups.tp->all_reduce(1.0, ReduceOp::sum); });
  unsetenv("EMULATED_NCCL_FAULT");
  check(at_call == "nothing failed" || at_call == later, "two failures: ", at_call, " and ", later);
  expect_words(later, {"group tp, rank " + std::to_string(session.rank()) + " of " +
                           std::to_string(session.size()) + " (world ranks 0, 1",
                       "all_reduce, operation number 2", reason, "aborted"});
  meet();
}

/// A message that nobody sends, on a channel of its own: all groups of the rank tell of it.
void check_missing_message(const MpiSession& session, Backend& ops) {
  const Block x(ops, 8);
  const ProcessGroups groups = impatient_groups(session, ops);
  std::vector<ChannelEnd> ends;
  if (session.rank() < 2)
    ends.push_back({.peer = 1 - session.rank(), .channel = 5, .sends = session.rank() == 0});
  groups.tp->open_channels(ends);
  if (session.rank() == 1) {
    const Exchange message{.peer = 0, .receive = x.tensor, .channel = 5};
    const PendingWork work = groups.tp->exchange_async({&message, 1});
    work->wait();
    ops.synchronize();
    for (ProcessGroup* group : {groups.tp.get(), groups.world.get()})
      expect_words(failure_of([&] { group->all_reduce(1.0, ReduceOp::sum); }),
                   {"group tp channel 5", "world ranks 0, 1", "receive, operation number 1",
                    "has not ended after 0.4 s"});
  }
  meet();
}

void check_wrong_use(ProcessGroup& group, Backend& ops) {
  if (group.size() == 1) return;
  const int next = (group.rank() + 1) % group.size();
  const std::vector<ChannelEnd> one_end{{.peer = next, .channel = 9, .sends = true}};
  expect_words(failure_of([&] { group.open_channels(one_end); }),
               {"group world", "channel 9", "by one of the two only"});
  const auto on_cpu = make_backend(Device::cpu, {.num_threads = 1});
  const std::string usage = failure_of([&] {
    make_device_process_groups(DeviceMesh(ParallelConfig{}, group.size()), *on_cpu,
                               Communication::nccl);
  });
  expect_words(usage, {"--comm nccl", "computes on the CPU"});
  static_cast<void>(ops);
}

void run(const MpiSession& session, bool faults) {
  const auto backend = make_backend(Device::cuda, {.local_rank = session.rank()});
  const auto groups_of = [&](const ParallelConfig& config) {
    return make_device_process_groups(
        DeviceMesh(config, session.size()), *backend,
        session.size() > 1 ? Communication::nccl : Communication::automatic);
  };
  {
    ProcessGroups groups = groups_of({});
    check_order(*groups.world, *backend);
    check_order(*groups.dp, *backend);
    check_wrong_use(*groups.world, *backend);
    check_all_collectives(*groups.world);  // host tensors
    check_group(std::move(groups.dp), *backend);
    check_group(std::move(groups.tp), *backend);
    check_pipelines(std::move(groups.world), *backend);
  }
  if (session.size() % 2 == 0) {
    ProcessGroups cut = groups_of({.tensor_model_parallel_size = 2});
    check(cut.tp->size() == 2 && cut.dp->size() == session.size() / 2, "wrong group sizes");
    check_group(std::move(cut.tp), *backend);
    check_group(std::move(cut.dp), *backend);
  }
  if (!faults || session.size() == 1) return;
  check_missing_message(session, *backend);
  check_fault(session, *backend, "hang", "has not ended after 0.4 s");
  check_fault(session, *backend, "error", "failed in NCCL: remote process exited");
}

void run_on_shared_gpu(const MpiSession& session) {
  const auto backend = make_backend(Device::cuda, {.local_rank = session.rank()});
  const DeviceMesh mesh(ParallelConfig{}, session.size());
  expect_words(failure_of([&] { make_device_process_groups(mesh, *backend, Communication::nccl); }),
               {"--comm nccl is not possible", "ranks 0 and 1 share one GPU", "--comm mpi"});
  ProcessGroups groups = make_device_process_groups(mesh, *backend, Communication::automatic);
  check_order(*groups.world, *backend);
  check_group(std::move(groups.dp), *backend);
  check_group(std::move(groups.tp), *backend);
  check_pipelines(std::move(groups.world), *backend);
}

}  // namespace
}  // namespace phalanx::test

int main(int argc, char** argv) {
  phalanx::MpiSession session(&argc, &argv);
  try {
    const std::string_view mode = argc > 1 ? argv[1] : "";
    const int gpus = mode == "--shared-gpu" ? 1 : session.size();
    if (const int code = phalanx::test::missing_device_code(gpus); code != 0) return code;
    if (mode == "--shared-gpu") {
      phalanx::test::run_on_shared_gpu(session);
    } else {
      phalanx::test::run(session, mode == "--faults");
    }
  } catch (const std::exception& error) {
    phalanx::log_info("rank {}: {}", session.rank(), error.what());
    phalanx::MpiSession::abort(1);
  }
  return 0;
}
