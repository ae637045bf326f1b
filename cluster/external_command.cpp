// Running a program to its end, or to the end of our patience.
#include "cluster/external_command.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "cluster/child_process.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

bool is_plain(unsigned char c) {
  return std::isalnum(c) != 0 ||
         std::string_view("-_=./,:+@%").find(static_cast<char>(c)) != std::string_view::npos;
}

bool is_program(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored) && access(path.c_str(), X_OK) == 0;
}

}  // namespace

std::string shell_word(const std::string& word) {
  if (!word.empty() && std::ranges::all_of(word, is_plain)) return word;
  std::string text = "'";
  for (const char c : word) {
    if (c == '\'')
      text += "'\\''";  // quotes end, a quote, quotes begin again
    else
      text += c;
  }
  return text + "'";
}

std::string command_text(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words)
    text.append(text.empty() ? "" : " ").append(shell_word(word));
  return text;
}

std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return is_program(name) ? name : "";
  const char* path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "/usr/bin:/bin" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    std::string program = (folder.empty() ? "." : folder) + "/" + name;
    if (is_program(program)) return program;
  }
  return "";
}

CommandResult run_command(const std::vector<std::string>& words, double timeout_seconds,
                          const std::vector<std::string>& environment) {
  using Clock = std::chrono::steady_clock;
  constexpr int kTickMilliseconds = 20;  // it may end while a child of its own holds the pipes
  const auto deadline = Clock::now() + std::chrono::duration<double>(timeout_seconds);
  ChildProcess child({.words = words, .environment = environment});
  CommandResult result;
  while (true) {
    const std::optional<int> code = child.exit_code();
    child.read_output(result.output);
    child.read_error(result.error);
    if (code) {
      result.exit_code = *code;
      return result;
    }
    if (Clock::now() > deadline) {
      child.signal_group(SIGKILL);
      fail("`", command_text(words), "` has not ended after ", timeout_seconds,
           " s and was killed; is the controller of the cluster well? ", result.error);
    }
    std::array<pollfd, 2> pipes{{{child.output(), POLLIN, 0}, {child.error(), POLLIN, 0}}};
    poll(pipes.data(), pipes.size(), kTickMilliseconds);
  }
}

}  // namespace phalanx
