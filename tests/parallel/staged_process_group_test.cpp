// Host-staged groups on thread ranks, each with its own backend of the device under test.
#include "parallel/staged_process_group.h"

#include <gmock/gmock.h>

#include "kernels/make_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/allocation_count.h"
#include "tests/parallel/group_checks.h"
#include "tests/parallel/on_device_group.h"
#include "tests/parallel/pipeline_checks.h"
#include "tests/test_device.h"

namespace phalanx::test {
namespace {

using testing::HasSubstr;

/// A tensor of the device under test with these values.
class DeviceValues {
 public:
  DeviceValues(Backend& ops, std::vector<float> values)
      : ops_(ops), values_(std::move(values)), block_(ops.allocate(flat(values_).bytes())) {
    ops_.upload((*this)(), values_.data());
  }
  Tensor operator()() const {
    return {block_.get(), {std::ssize(values_)}, DType::f32, ops_.device()};
  }
  const std::vector<float>& read() {
    ops_.download(values_.data(), (*this)());
    return values_;
  }

 private:
  Backend& ops_;
  std::vector<float> values_;
  std::shared_ptr<void> block_;
};

class StagedGroups : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, StagedGroups, testing::Values(1, 2, 3, 4));

TEST_P(StagedGroups, AllCollectivesOnDeviceTensors) {
  run_thread_ranks(GetParam(), [](ThreadRank& rank) {
    const auto backend = make_backend(test_device(), {.num_threads = 1});
    OnDeviceGroup group(std::make_unique<StagedProcessGroup>(rank.world_group(), *backend),
                        *backend);
    check_all_collectives(group);
  });
}

TEST_P(StagedGroups, AllCollectivesOnHostTensors) {
  run_thread_ranks(GetParam(), [](ThreadRank& rank) {
    const auto backend = make_backend(test_device(), {.num_threads = 1});
    StagedProcessGroup group(rank.world_group(), *backend);
    check_all_collectives(group);
  });
}

TEST_P(StagedGroups, Pipelines) {
  run_thread_ranks(GetParam(), [](ThreadRank& rank) {
    const auto backend = make_backend(test_device(), {.num_threads = 1});
    OnDeviceGroup group(std::make_unique<StagedProcessGroup>(rank.world_group(), *backend),
                        *backend);
    for (const PipelineCase& run : pipeline_cases(group.size(), 3)) check_pipeline(group, run);
  });
}

// Also what a group of one does, and what goes to oneself.
TEST(StagedGroups, GroupsOfOneCopyOnTheDevice) {
  const auto backend = make_backend(test_device(), {.num_threads = 1});
  const ProcessGroups groups = make_single_process_groups(backend.get());
  DeviceValues x(*backend, {1, 2, 3, 4});
  DeviceValues y(*backend, {0, 0, 0, 0});
  groups.tp->all_gather(y(), x());
  EXPECT_EQ(y.read(), x.read());
  DeviceValues z(*backend, {0, 0, 0, 0});
  groups.ep->all_to_all(z(), x(), std::vector<int64_t>{4}, std::vector<int64_t>{4});
  EXPECT_EQ(z.read(), x.read());
  DeviceValues sent(*backend, {0, 0, 0, 0});
  const Exchange message{.peer = 0, .send = x(), .receive = sent()};
  groups.pp->exchange({&message, 1});
  EXPECT_EQ(sent.read(), x.read());
}

// The memory of a collective under way may be read and written by nobody; what the backend is given
// after `wait` sees the result, without a synchronisation.
TEST(StagedGroups, WorkIsOrderedWithTheBackendsOps) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    const auto backend = make_backend(test_device(), {.num_threads = 1});
    StagedProcessGroup group(rank.world_group(), *backend);
    constexpr int64_t kCount = 1000;
    DeviceValues x(*backend, std::vector<float>(kCount, 1.0F));
    DeviceValues sum(*backend, std::vector<float>(kCount / 2));
    const std::vector<int64_t> counts{kCount / 2, kCount / 2};
    for (int step = 0; step < 5; ++step) {
      backend->fill(x(), 1.0);
      backend->add(x(), x(), x());
      const PendingWork work = group.reduce_scatter_in_place_async(x(), counts);
      work->wait();
      const int64_t begin = group.rank() * kCount / 2;
      backend->add(sum(), sum(), x().slice(begin, begin + kCount / 2));
    }
    EXPECT_THAT(sum.read(), testing::Each(20.0F));
  });
}

TEST(StagedGroups, AHostGroupRefusesDeviceTensors) {
  if (test_device() == Device::cpu) {
    // Nothing is on another device: the refusal is that of a tensor that says it is.
    run_thread_ranks(1, [](ThreadRank& rank) {
      std::vector<float> x(4);
      std::vector<float> y(4);
      Tensor from = flat(x);
      Tensor to = flat(y);
      from.device = to.device = Device::cuda;
      EXPECT_THAT([&] { rank.world_group()->all_gather(to, from); },
                  testing::ThrowsMessage<Error>(HasSubstr("moves host memory only")));
    });
    return;
  }
  const auto backend = make_backend(test_device());
  DeviceValues x(*backend, {1, 2});
  DeviceValues y(*backend, {1, 2});
  EXPECT_THAT([&] { make_single_process_groups().tp->all_gather(y(), x()); },
              testing::ThrowsMessage<Error>(HasSubstr("moves host memory only")));
}

}  // namespace
}  // namespace phalanx::test
