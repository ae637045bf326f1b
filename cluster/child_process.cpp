// posix_spawn, pipes and waiting.
#include "cluster/child_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

struct Pipe {
  int read_end = -1;
  int write_end = -1;

  Pipe() {
    std::array<int, 2> ends{};
    check(pipe2(ends.data(), O_CLOEXEC) == 0, "cannot make a pipe: ", std::strerror(errno));
    read_end = ends[0];
    write_end = ends[1];
    fcntl(read_end, F_SETFL, O_NONBLOCK);
  }
  ~Pipe() {
    if (read_end >= 0) close(read_end);
    if (write_end >= 0) close(write_end);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
};

/// How a program starts: a group of its own, no signal blocked or ignored.
struct Attributes {
  posix_spawnattr_t value{};

  Attributes() {
    posix_spawnattr_init(&value);
    sigset_t none;
    sigset_t defaults;
    sigemptyset(&none);
    sigfillset(&defaults);
    posix_spawnattr_setsigmask(&value, &none);
    posix_spawnattr_setsigdefault(&value, &defaults);
    posix_spawnattr_setpgroup(&value, 0);
    posix_spawnattr_setflags(
        &value, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  }
  ~Attributes() { posix_spawnattr_destroy(&value); }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;
};

struct FileActions {
  posix_spawn_file_actions_t value{};

  FileActions() { posix_spawn_file_actions_init(&value); }
  ~FileActions() { posix_spawn_file_actions_destroy(&value); }
  FileActions(const FileActions&) = delete;
  FileActions& operator=(const FileActions&) = delete;
};

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> result;
  for (const std::string& word : words) result.push_back(const_cast<char*>(word.c_str()));
  result.push_back(nullptr);
  return result;
}

}  // namespace

ChildProcess::ChildProcess(const Start& start) {
  check(!start.words.empty(), "a program to start needs a name");
  Pipe output;
  Pipe error;
  FileActions actions;
  posix_spawn_file_actions_addopen(&actions.value, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (start.read_output)
    posix_spawn_file_actions_adddup2(&actions.value, output.write_end, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions.value, error.write_end, STDERR_FILENO);
  const Attributes attributes;
  const std::vector<char*> words = pointers(start.words);
  const std::vector<char*> environment = pointers(start.environment);
  const int code = posix_spawnp(&pid_, words[0], &actions.value, &attributes.value, words.data(),
                                start.environment.empty() ? environ : environment.data());
  check(code == 0, "cannot start ", start.words[0], ": ", std::strerror(code));
  if (start.read_output) output_ = std::exchange(output.read_end, -1);
  error_ = std::exchange(error.read_end, -1);
}

ChildProcess::~ChildProcess() {
  if (!exit_code()) {
    signal_group(SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (output_ >= 0) close(output_);
  if (error_ >= 0) close(error_);
}

bool ChildProcess::read_some(int& descriptor, std::string& text) {
  std::array<char, 65536> buffer{};
  while (descriptor >= 0) {
    const ssize_t bytes = read(descriptor, buffer.data(), buffer.size());
    if (bytes > 0) {
      text.append(buffer.data(), static_cast<size_t>(bytes));
    } else if (bytes < 0 && errno == EINTR) {
      continue;
    } else if (bytes < 0 && errno == EAGAIN) {
      return true;
    } else {
      close(descriptor);
      descriptor = -1;
    }
  }
  return false;
}

std::optional<int> ChildProcess::exit_code() {
  int status = 0;
  if (exit_code_ || waitpid(pid_, &status, WNOHANG) != pid_) return exit_code_;
  exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return exit_code_;
}

void ChildProcess::signal(int number) {
  if (!exit_code()) kill(pid_, number);
}

void ChildProcess::signal_group(int number) {
  if (!exit_code()) kill(-pid_, number);
}

}  // namespace phalanx
