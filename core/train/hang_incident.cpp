// O_EXCL and small texts.
#include "core/train/hang_incident.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <utility>

namespace phalanx {
namespace {

constexpr char kAnnounced[] = "hang\n";

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

HangIncident::HangIncident(std::string folder, int64_t attempt, std::chrono::milliseconds takeover)
    : folder_(std::move(folder)), attempt_(attempt), takeover_(takeover), since_(Clock::now()) {}

std::string HangIncident::path_of(int64_t generation) const {
  return fmt::format("{}/hang_{}.{}", folder_, attempt_, generation);
}

HangIncident::Role HangIncident::look() {
  if (doctor_ && access(path_of(generation_ + 1).c_str(), F_OK) == 0) {
    doctor_ = false;  // this rank was taken for gone
    ++generation_;
  }
  if (!doctor_) {
    const int descriptor =
        open(path_of(generation_).c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (descriptor >= 0) close(descriptor);
    doctor_ = descriptor >= 0;
  }
  if (doctor_) {
    write(fmt::format("looking {}\n", ++num_looks_));  // the others see that the doctor lives
    return Role::doctor;
  }
  std::string text = text_of(path_of(generation_));
  if (text.starts_with(kAnnounced)) return Role::announced;
  if (text != seen_) since_ = Clock::now();
  seen_ = std::move(text);
  if (Clock::now() - since_ > takeover_) {
    ++generation_;
    since_ = Clock::now();
  }
  return Role::waits;
}

void HangIncident::announce(const std::string& text) {
  write(kAnnounced + text);
}

void HangIncident::withdraw() {
  if (doctor_) unlink(path_of(generation_).c_str());
  doctor_ = false;
  generation_ = 1;
  since_ = Clock::now();
}

/// In one piece, so that a reader finds the first word whole.
void HangIncident::write(const std::string& text) const {
  const int descriptor = open(path_of(generation_).c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC);
  if (descriptor < 0) return;
  const ssize_t written = ::write(descriptor, text.data(), text.size());
  (void)written;  // it is looked for again at the next reading
  close(descriptor);
}

}  // namespace phalanx
