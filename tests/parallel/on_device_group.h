// OnDeviceGroup: lets checks that hold their values in host memory run on device tensors.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "parallel/process_groups.h"

namespace phalanx::test {

/// Each host tensor is copied to the device, `inner` works on the copy, and the result is copied
/// back: by the call, or by `wait`. Between start and wait of asynchronous work nothing but
/// `inner` orders the copies and the communication.
class OnDeviceGroup final : public ProcessGroup {
 public:
  OnDeviceGroup(std::unique_ptr<ProcessGroup> inner, Backend& backend)
      : ProcessGroup(inner->name(), inner->rank(), inner->size(), &backend),
        inner_(std::move(inner)),
        ops_(backend) {}

 private:
  using Counts = std::span<const int64_t>;

  /// A copy on the device, and how it comes back.
  struct Copy {
    std::shared_ptr<void> block;
    Tensor device;
    Tensor host;
  };
  class CopyWork final : public Work {
   public:
    CopyWork(Backend& ops, std::vector<Copy> copies, PendingWork work)
        : ops_(ops), copies_(std::move(copies)), work_(std::move(work)) {}

   private:
    void wait_impl() override {
      work_->wait();
      for (const Copy& copy : copies_)
        if (copy.host && copy.host.numel() > 0) ops_.download(copy.host.data, copy.device);
    }
    Backend& ops_;
    std::vector<Copy> copies_;
    PendingWork work_;
  };

  Copy copy_of(const Tensor& x) {
    Copy copy{block_of(x.bytes()), x, x};
    copy.device.data = copy.block.get();
    copy.device.device = ops_.device();
    if (x.numel() > 0) ops_.upload(copy.device, x.data);
    return copy;
  }
  /// Kept, because freeing memory of a device waits for all that runs on it, which may in turn wait
  /// for what the caller does next. A block is free when nobody else holds it.
  std::shared_ptr<void> block_of(int64_t bytes) {
    for (const auto& [size, block] : blocks_)
      if (size >= bytes && block.use_count() == 1) return block;
    const int64_t size = std::max<int64_t>(bytes, 4096);
    return blocks_.emplace_back(size, ops_.allocate(size)).second;
  }
  template <class Call>
  void run(const Tensor& x, Call&& call) {
    const Copy copy = copy_of(x);
    call(copy.device);
    if (x.numel() > 0) ops_.download(x.data, copy.device);
  }

  void all_reduce_impl(const Tensor& x, ReduceOp op) override {
    run(x, [&](const Tensor& y) { inner_->all_reduce(y, op); });
  }
  void all_gather_impl(const Tensor& out, Counts counts) override {
    run(out, [&](const Tensor& y) { inner_->all_gather_in_place(y, counts); });
  }
  void reduce_scatter_impl(const Tensor& x, Counts counts) override {
    run(x, [&](const Tensor& y) { inner_->reduce_scatter_in_place(y, counts); });
  }
  void all_to_all_impl(const Tensor& out, const Tensor& x, Counts send_counts,
                       Counts receive_counts) override {
    const Copy sent = copy_of(x);
    run(out,
        [&](const Tensor& y) { inner_->all_to_all(y, sent.device, send_counts, receive_counts); });
  }
  void broadcast_impl(const Tensor& x, int root) override {
    run(x, [&](const Tensor& y) { inner_->broadcast(y, root); });
  }
  void barrier_impl() override { inner_->barrier(); }
  void open_channels_impl(std::span<const ChannelEnd> ends) override {
    inner_->open_channels(ends);
  }
  PendingWork exchange_async_impl(std::span<const Exchange> messages) override {
    std::vector<Copy> copies;
    std::vector<Exchange> on_device;
    for (const Exchange& message : messages) {
      Exchange copied{.peer = message.peer, .channel = message.channel};
      if (message.send) copied.send = copies.emplace_back(copy_of(message.send)).device;
      if (message.receive) copied.receive = copies.emplace_back(copy_of(message.receive)).device;
      if (message.send) copies[copies.size() - (message.receive ? 2 : 1)].host = Tensor{};
      on_device.push_back(copied);
    }
    PendingWork work = inner_->exchange_async(on_device);
    return std::make_unique<CopyWork>(ops_, std::move(copies), std::move(work));
  }
  PendingWork reduce_scatter_async_impl(const Tensor& x, Counts counts) override {
    std::vector<Copy> copies{copy_of(x)};
    PendingWork work = inner_->reduce_scatter_in_place_async(copies.front().device, counts);
    return std::make_unique<CopyWork>(ops_, std::move(copies), std::move(work));
  }
  PendingWork all_gather_async_impl(const Tensor& out, Counts counts) override {
    std::vector<Copy> copies{copy_of(out)};
    PendingWork work = inner_->all_gather_in_place_async(copies.front().device, counts);
    return std::make_unique<CopyWork>(ops_, std::move(copies), std::move(work));
  }

  std::unique_ptr<ProcessGroup> inner_;
  Backend& ops_;
  std::vector<std::pair<int64_t, std::shared_ptr<void>>> blocks_;
};

}  // namespace phalanx::test
