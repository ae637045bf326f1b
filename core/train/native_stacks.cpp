// A signal to every thread, whose handler notes return addresses; names are found afterwards.
#include "core/train/native_stacks.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <list>
#include <memory>
#include <thread>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr int kMostFrames = 64;
constexpr int kHandlerFrames = 2;  // the handler's own and the kernel's trampoline
constexpr size_t kHandlerStackBytes = size_t{128} << 10;

/// What a thread writes down of itself.
struct Sample {
  std::array<void*, kMostFrames> addresses{};
  std::atomic<int> depth{-1};  // -1: no answer yet
};

int stack_signal() {
  return SIGRTMIN + 6;
}

std::atomic<bool>& handler_is_set() {
  static std::atomic<bool> is_set{false};
  return is_set;
}

/// In the thread's place: calls only what may be called there. backtrace has loaded its library
/// when the handler was set.
void note_stack(int, siginfo_t* info, void*) {
  if (info->si_code != SI_QUEUE || info->si_pid != getpid()) return;
  const int saved = errno;
  auto& sample = *static_cast<Sample*>(info->si_value.sival_ptr);
  const int depth = backtrace(sample.addresses.data(), kMostFrames);
  sample.depth.store(depth, std::memory_order_release);
  errno = saved;
}

/// For the calling thread, as long as it lives; kept by the process.
void give_handler_stack() {
  stack_t now{};
  if (sigaltstack(nullptr, &now) == 0 && (now.ss_flags & SS_DISABLE) == 0) return;
  void* memory = mmap(nullptr, kHandlerStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return;
  const stack_t stack{.ss_sp = memory, .ss_flags = 0, .ss_size = kHandlerStackBytes};
  sigaltstack(&stack, nullptr);
}

bool ask(int64_t thread, Sample& sample) {
  siginfo_t info{};
  info.si_code = SI_QUEUE;
  info.si_pid = getpid();
  info.si_uid = getuid();
  info.si_value.sival_ptr = &sample;
  return syscall(SYS_rt_tgsigqueueinfo, getpid(), thread, stack_signal(), &info) == 0;
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::vector<int64_t> other_threads() {
  std::vector<int64_t> threads;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", error)) {
    const std::string name = entry.path().filename();
    int64_t id = 0;
    std::from_chars(name.data(), name.data() + name.size(), id);
    if (id != gettid()) threads.push_back(id);
  }
  std::ranges::sort(threads);  // the main thread has the process's number, the lowest
  const auto main = std::ranges::find(threads, int64_t{getpid()});
  if (main != threads.end()) std::rotate(threads.begin(), main, std::next(main));
  return threads;
}

std::string symbol_name(const char* symbol) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> readable(
      abi::__cxa_demangle(symbol, nullptr, nullptr, &status), &std::free);
  return status == 0 ? readable.get() : symbol;
}

std::string frame_text(void* address) {
  Dl_info info{};
  if (dladdr(address, &info) == 0) return fmt::format("{}", address);
  const auto offset = [&](const void* base) {
    return static_cast<const char*>(address) - static_cast<const char*>(base);
  };
  const std::string file = std::filesystem::path(info.dli_fname).filename();
  if (info.dli_sname == nullptr) return fmt::format("{}(+{:#x})", file, offset(info.dli_fbase));
  return fmt::format("{} +{:#x} in {}(+{:#x})", symbol_name(info.dli_sname), offset(info.dli_saddr),
                     file, offset(info.dli_fbase));
}

ThreadStack described(int64_t thread, const Sample& sample) {
  const std::string folder = fmt::format("/proc/self/task/{}/", thread);
  const std::string stat = first_line(folder + "stat");
  const size_t end = stat.rfind(')');
  ThreadStack stack{.id = thread, .name = first_line(folder + "comm")};
  if (end != std::string::npos && end + 2 < stat.size()) stack.state = stat[end + 2];
  const int depth = sample.depth.load(std::memory_order_acquire);
  stack.answered = depth >= 0;
  for (int i = kHandlerFrames; i < depth; ++i)
    stack.frames.push_back(frame_text(sample.addresses[static_cast<size_t>(i)]));
  return stack;
}

}  // namespace

void prepare_native_stacks() {
  std::array<void*, 4> addresses{};
  backtrace(addresses.data(), static_cast<int>(addresses.size()));  // loads its library
  struct sigaction action {};
  action.sa_sigaction = note_stack;
  action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  check(sigaction(stack_signal(), &action, nullptr) == 0, "cannot set a signal handler");
  give_handler_stack();
  handler_is_set() = true;
}

void prepare_worker_stacks() {
#pragma omp parallel
  give_handler_stack();
}

std::vector<ThreadStack> native_stacks(std::chrono::milliseconds patience) {
  if (!handler_is_set()) return {};  // the signal would end the process
  const std::vector<int64_t> threads = other_threads();
  // Kept, because a thread may answer when nobody waits any more.
  static std::list<std::vector<Sample>> kept;
  std::vector<Sample>& samples = kept.emplace_back(threads.size());
  std::vector<char> asked(threads.size());
  for (size_t i = 0; i < threads.size(); ++i) asked[i] = ask(threads[i], samples[i]) ? 1 : 0;
  const auto end = std::chrono::steady_clock::now() + patience;
  const auto waiting = [&] {
    for (size_t i = 0; i < threads.size(); ++i)
      if (asked[i] != 0 && samples[i].depth.load(std::memory_order_acquire) < 0) return true;
    return false;
  };
  while (waiting() && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::vector<ThreadStack> stacks;
  for (size_t i = 0; i < threads.size(); ++i) stacks.push_back(described(threads[i], samples[i]));
  return stacks;
}

std::string stacks_text(const std::vector<ThreadStack>& stacks) {
  std::string text;
  for (const ThreadStack& stack : stacks) {
    text += fmt::format("\nthread {} {} (state {})\n", stack.id, stack.name, stack.state);
    if (!stack.answered) text += "  takes no signal: it is in the kernel, or blocks them\n";
    for (size_t i = 0; i < stack.frames.size(); ++i)
      text += fmt::format("  #{:<2} {}\n", i, stack.frames[i]);
  }
  return text;
}

}  // namespace phalanx
