// Mesh equivalence under mpirun: each argument is a line of MeshCase for as many ranks as there
// are, on the device that PHALANX_TEST_DEVICE names. Exits non-zero if any differs from one rank.
#include "kernels/base/log.h"
#include "kernels/make_backend.h"
#include "parallel/mpi_process_group.h"
#include "tests/mesh/mesh_case.h"
#include "tests/missing_device.h"
#include "tests/test_device.h"

namespace phalanx::test {
namespace {

void run(const std::string& line, const MpiSession& session) {
  const MeshCase mesh(line);
  check(mesh.world_size == session.size(), "'", line, "' is a layout of ", mesh.world_size,
        " ranks, not of ", session.size());
  const auto backend =
      make_backend(test_device(), {.num_threads = 1, .local_rank = session.rank()});
  ProcessGroups groups = make_device_process_groups(
      DeviceMesh(mesh.layout.parallel, mesh.world_size), *backend, Communication::automatic);
  for (const LayoutDifference& difference : compare_with_one_rank(mesh.layout, *backend, groups))
    fail("'", line, "', step ", difference.step, ": ", difference.what, " differs by ",
         difference.difference, ", tolerance ", difference.tolerance);
  if (session.rank() == 0) log_info("'{}' equals one rank", line);
}

}  // namespace
}  // namespace phalanx::test

int main(int argc, char** argv) {
  phalanx::MpiSession session(&argc, &argv);
  if (const int code = phalanx::test::missing_device_code(); code != 0) return code;
  try {
    phalanx::check(argc > 1, "no layout given, such as 'cswa2: tp2 sp dp4'");
    for (int i = 1; i < argc; ++i) phalanx::test::run(argv[i], session);
  } catch (const std::exception& error) {
    phalanx::log_info("rank {}: {}", session.rank(), error.what());
    phalanx::MpiSession::abort(1);
  }
  return 0;
}
