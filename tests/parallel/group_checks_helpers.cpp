// Checks of process groups that need no template: asynchronous work, messages, traffic, bits.
#include "tests/parallel/group_checks.h"

#include <chrono>
#include <thread>

namespace phalanx::test {

void check_async(ProcessGroup& group) {
  constexpr int kNumWorks = 7;
  std::vector<std::vector<int64_t>> counts;
  std::vector<std::vector<float>> x;
  std::vector<PendingWork> works;
  for (int i = 0; i < kNumWorks; ++i) {
    counts.push_back(uneven_counts(group.size(), i));
    x.push_back(values_of<float>(group.rank(), begin_of(counts.back(), group.size())));
  }
  for (int i = 0; i < kNumWorks; ++i)
    works.push_back(group.reduce_scatter_in_place_async(flat(x[static_cast<size_t>(i)]),
                                                        counts[static_cast<size_t>(i)]));
  check_all_reduce<float>(group);
  for (int i = 0; i < kNumWorks; ++i) {
    const auto n = static_cast<size_t>(i);
    works[n]->wait();
    check_scattered(group, x[n].data() + begin_of(counts[n], group.rank()), counts[n]);
  }
}

static int64_t rows_from_to(int from, int to) {
  return (from * 2 + to) % 3;
}

void check_all_to_all(ProcessGroup& group) {
  std::vector<int64_t> send_counts;
  std::vector<int64_t> receive_counts;
  for (int peer = 0; peer < group.size(); ++peer) {
    send_counts.push_back(rows_from_to(group.rank(), peer));
    receive_counts.push_back(rows_from_to(peer, group.rank()));
  }
  const int64_t sent = begin_of(send_counts, group.size());
  const int64_t received = begin_of(receive_counts, group.size());
  // Row content tells sender, receiver and place.
  const auto content = [](int from, int to, int64_t row) { return from * 100 + to * 10 + row; };
  std::vector<int64_t> x;
  for (int peer = 0; peer < group.size(); ++peer)
    for (int64_t row = 0; row < send_counts[static_cast<size_t>(peer)]; ++row)
      x.insert(x.end(), 2, content(group.rank(), peer, row));
  std::vector<int64_t> out(static_cast<size_t>(received * 2));
  group.all_to_all(cpu_tensor(out.data(), {received, 2}), cpu_tensor(x.data(), {sent, 2}),
                   send_counts, receive_counts);
  size_t next = 0;
  for (int peer = 0; peer < group.size(); ++peer)
    for (int64_t row = 0; row < receive_counts[static_cast<size_t>(peer)]; ++row)
      for (int column = 0; column < 2; ++column, ++next)
        expect_equal(static_cast<double>(out[next]),
                     static_cast<double>(content(peer, group.rank(), row)), group, "all_to_all",
                     static_cast<int64_t>(next));
}

void check_broadcast(ProcessGroup& group) {
  for (int root = 0; root < group.size(); ++root) {
    std::vector<double> x = values_of<double>(group.rank(), 33);
    group.broadcast(flat(x), root);
    for (int64_t i = 0; i < 33; ++i)
      expect_equal(x[static_cast<size_t>(i)], value_at<double>(root, i), group, "broadcast", i);
  }
}

void check_exchange(ProcessGroup& group) {
  const int next = (group.rank() + 1) % group.size();
  const int previous = (group.rank() + group.size() - 1) % group.size();
  std::vector<float> first(11, static_cast<float>(group.rank()));
  std::vector<float> second(3, static_cast<float>(group.rank() + 100));
  std::vector<float> own(2, 5.0F);
  std::vector<float> first_in(11);
  std::vector<float> second_in(3);
  std::vector<float> own_in(2);
  const Exchange messages[] = {
      {next, flat(first), next == group.rank() ? flat(first_in) : Tensor{}},
      {group.rank(), flat(own), flat(own_in)},
      {next, flat(second), next == group.rank() ? flat(second_in) : Tensor{}},
      {previous, {}, flat(first_in)},
      {previous, {}, flat(second_in)}};
  group.exchange(std::span(messages).first(group.size() == 1 ? 3 : 5));
  for (const float value : first_in) expect_equal(value, previous, group, "exchange", 0);
  for (const float value : second_in) expect_equal(value, previous + 100, group, "exchange", 1);
  for (const float value : own_in) expect_equal(value, 5.0, group, "exchange", 2);
}

/// What message `number` on `channel` from `rank` holds.
static std::vector<int64_t> message_values(int rank, int channel, int number) {
  return std::vector<int64_t>(static_cast<size_t>(1 + 600 * channel),
                              rank * 100 + channel * 10 + number);
}

void check_channels(ProcessGroup& group) {
  if (group.size() == 1) return;  // nobody to send to
  const int next = (group.rank() + 1) % group.size();
  const int previous = (group.rank() + group.size() - 1) % group.size();
  constexpr int kNumChannels = 4;
  constexpr int kNumMessages = 3;  // per channel: must keep their order
  std::vector<ChannelEnd> ends;
  for (int channel = 0; channel < kNumChannels; ++channel) {
    ends.push_back({.peer = next, .channel = channel, .sends = true});
    ends.push_back({.peer = previous, .channel = channel, .sends = false});
  }
  group.open_channels(ends);
  std::vector<std::vector<int64_t>> sent;
  std::vector<std::vector<int64_t>> received;
  std::vector<PendingWork> works;
  sent.reserve(kNumChannels * kNumMessages);
  received.reserve(kNumChannels * kNumMessages);
  for (int number = 0; number < kNumMessages; ++number)
    for (int channel = 0; channel < kNumChannels; ++channel) {
      sent.push_back(message_values(group.rank(), channel, number));
      const Exchange message{.peer = next, .send = flat(sent.back()), .channel = channel};
      works.push_back(group.exchange_async({&message, 1}));
    }
  check_all_reduce<float>(group);  // is not confused by messages under way
  check_all_to_all(group);
  for (int channel = kNumChannels - 1; channel >= 0; --channel)
    for (int number = 0; number < kNumMessages; ++number) {
      received.emplace_back(message_values(previous, channel, number).size());
      const Exchange message{
          .peer = previous, .receive = flat(received.back()), .channel = channel};
      works.push_back(group.exchange_async({&message, 1}));
    }
  while (!works.empty()) {  // the receives first, in another order than they were posted
    works.back()->wait();
    works.pop_back();
  }
  size_t place = 0;
  for (int channel = kNumChannels - 1; channel >= 0; --channel)
    for (int number = 0; number < kNumMessages; ++number, ++place)
      check(received[place] == message_values(previous, channel, number), "message ", number,
            " on channel ", channel, " from rank ", previous, " holds ", received[place].front());
}

void check_ring(ProcessGroup& group) {
  const int n = group.size();
  std::vector<double> x = values_of<double>(group.rank(), 801);
  std::vector<double> arriving(x.size());
  for (int step = 1; step <= n; ++step) {
    const Exchange both_ways[] = {{.peer = (group.rank() + 1) % n, .send = flat(x)},
                                  {.peer = (group.rank() + n - 1) % n, .receive = flat(arriving)}};
    const Exchange to_oneself{.peer = 0, .send = flat(x), .receive = flat(arriving)};
    group.exchange_async(n == 1 ? std::span(&to_oneself, 1) : std::span(both_ways))->wait();
    std::swap(x, arriving);
    const int origin = (group.rank() + n - step) % n;
    for (int64_t i = 0; i < 801; ++i)
      expect_equal(x[static_cast<size_t>(i)], value_at<double>(origin, i), group, "ring", i);
  }
}

/// Pairs of ranks talk as often as they like; nobody else is needed.
void check_pairs(ProcessGroup& group) {
  const int peer = group.rank() ^ 1;
  const int num_messages = peer < group.size() ? 1 + 3 * (group.rank() / 2) : 0;
  for (int number = 0; number < num_messages; ++number) {
    std::vector<int64_t> out(900, group.rank() * 100 + number);
    std::vector<int64_t> in(900);
    const Exchange message{.peer = peer, .send = flat(out), .receive = flat(in)};
    group.exchange({&message, 1});
    expect_equal(static_cast<double>(in.back()), peer * 100 + number, group, "pair", number);
  }
  group.barrier();
}

void check_waiting_time(ProcessGroup& group) {
  const auto now = [] { return std::chrono::steady_clock::now(); };
  const auto seconds = [](auto duration) {
    return std::chrono::duration<double>(duration).count();
  };
  constexpr std::chrono::milliseconds kNap{40};
  const double before = group.waiting_seconds();
  const auto begin = now();
  group.barrier();
  if (group.rank() == 0) std::this_thread::sleep_for(kNap);
  std::vector<float> x(4);
  const int next = (group.rank() + 1) % group.size();
  const Exchange from_first{.peer = group.rank() == 0 ? next : 0,
                            .send = group.rank() == 0 ? flat(x) : Tensor{},
                            .receive = group.rank() == 0 ? Tensor{} : flat(x)};
  if (group.size() > 1 && group.rank() < 2) group.exchange({&from_first, 1});
  const double elapsed = seconds(now() - begin);
  const double waited = group.waiting_seconds() - before;
  if (group.size() == 1) expect_equal(waited, 0, group, "waiting time", 0);
  check(0 <= waited && waited <= elapsed - (group.rank() == 0 ? seconds(kNap) : 0), "rank ",
        group.rank(), " waited ", waited, " s of ", elapsed);
  // Half of it: rank 1 may be late itself between its two calls.
  if (group.rank() == 1)
    check(waited >= 0.5 * seconds(kNap), "waited only ", waited, " s for a rank that slept");
}

static void check_traffic(ProcessGroup& group) {
  const auto expect = [&](Collective operation, int64_t bytes, auto&& body) {
    const Traffic before = group.traffic(operation);
    body();
    const Traffic after = group.traffic(operation);
    const bool alone = group.size() == 1;
    expect_equal(static_cast<double>(after.calls - before.calls), alone ? 0 : 1, group,
                 "traffic calls", static_cast<int64_t>(operation));
    expect_equal(static_cast<double>(after.bytes - before.bytes),
                 alone ? 0 : static_cast<double>(bytes), group, "traffic bytes",
                 static_cast<int64_t>(operation));
  };
  const int64_t n = group.size();
  std::vector<float> large(static_cast<size_t>(6 * n));
  std::vector<float> small(6);
  const std::vector<int64_t> equal(static_cast<size_t>(n), 6);
  const std::vector<int64_t> rows(static_cast<size_t>(n), 1);
  const Tensor matrix = flat(large).view({n, 6});
  std::vector<float> other(large.size());
  expect(Collective::all_reduce, 24 * n, [&] { group.all_reduce(flat(large), ReduceOp::sum); });
  expect(Collective::all_gather, 24, [&] { group.all_gather(flat(large), flat(small)); });
  expect(Collective::reduce_scatter, 24 * n,
         [&] { group.reduce_scatter(flat(small), flat(large)); });
  expect(Collective::all_gather, 24,
         [&] { group.all_gather_in_place_async(flat(large), equal)->wait(); });
  expect(Collective::all_to_all, 24 * n, [&] {
    group.all_to_all(flat(other).view({n, 6}), matrix, rows, rows);
  });
  expect(Collective::broadcast, group.rank() == 0 ? 24 : 0,
         [&] { group.broadcast(flat(small), 0); });
  expect(Collective::barrier, 0, [&] { group.barrier(); });
  expect(Collective::exchange, n == 1 ? 0 : 24, [&] {
    std::vector<float> in(6);
    const Exchange ring[] = {
        {static_cast<int>((group.rank() + 1) % n), flat(small), n == 1 ? flat(in) : Tensor{}},
        {static_cast<int>((group.rank() + n - 1) % n), {}, flat(in)}};
    group.exchange(std::span(ring).first(n == 1 ? 1 : 2));
  });
}

/// Sums whose value depends on the order of the terms: every rank must hold the same bits, and a
/// second run must give them again.
static void check_deterministic(ProcessGroup& group) {
  const auto run = [&] {
    std::vector<float> x;
    for (int64_t i = 0; i < 1001; ++i)
      x.push_back(1.0F / static_cast<float>(1 + (i * 37 + group.rank() * 1013) % 997));
    group.all_reduce(flat(x), ReduceOp::sum);
    return x;
  };
  std::vector<float> first = run();
  std::vector<float> most = first;
  group.all_reduce(flat(most), ReduceOp::max);
  check(first == run() && first == most, "all_reduce gives different bits on rank ", group.rank());
}

void check_all_collectives(ProcessGroup& group) {
  check_all_reduce<double>(group);
  check_all_reduce<float>(group);
  check_all_reduce<BFloat16>(group);
  check_all_reduce<int64_t>(group);
  check_all_reduce<int32_t>(group);
  check_all_gather<float>(group);
  check_all_gather<BFloat16>(group);
  check_reduce_scatter<double>(group);
  check_reduce_scatter<float>(group);
  check_reduce_scatter<BFloat16>(group);
  check_async(group);
  check_all_to_all(group);
  check_broadcast(group);
  check_exchange(group);
  check_channels(group);
  check_ring(group);
  check_pairs(group);
  check_waiting_time(group);
  check_traffic(group);
  check_deterministic(group);
  group.barrier();
  const int64_t n = group.size();
  expect_equal(group.all_reduce(group.rank() + 0.5, ReduceOp::max), static_cast<double>(n) - 0.5,
               group, "scalar max", 0);
  expect_equal(static_cast<double>(group.all_reduce(int64_t{group.rank()}, ReduceOp::sum)),
               static_cast<double>(n * (n - 1) / 2), group, "scalar sum", 0);
}

}  // namespace phalanx::test
