#include "io/temporary.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "laprox/error.h"
#include "laprox/temporaries.h"

namespace laprox {

namespace {

/// Names of files that are being written, where a signal handler can read them: it may neither allocate nor lock.
std::array<std::atomic<char*>, 64> names{};

void remember(const std::string& name) {
  char* copy = strdup(name.c_str());
  for (auto& slot : names) {
    char* empty = nullptr;
    if (slot.compare_exchange_strong(empty, copy)) return;
  }
  std::free(copy);  // more files than anyone writes at a time: this one stays behind after a signal
}

void forget(const std::string& name) {
  for (auto& slot : names) {
    char* held = slot.load();
    if (held && name == held && slot.compare_exchange_strong(held, nullptr)) return std::free(held);
  }
}

void remove_and_end(int signal) {
  for (auto& slot : names) {
    if (const char* name = slot.load()) unlink(name);
  }
  std::signal(signal, SIG_DFL);
  raise(signal);
}

}  // namespace

void remove_temporaries_on_signals() {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    if (std::signal(signal, remove_and_end) == SIG_IGN) std::signal(signal, SIG_IGN);  // as nohup wants it
  }
  std::signal(SIGXFSZ, SIG_IGN);  // a file beyond the shell's limit is then a failed write, which is reported
}

namespace io {

namespace {

constexpr int kAttempts = 100;  ///< names that are tried before all count as taken

std::uint32_t unforeseen_number() {
  std::uint32_t number = 0;
  if (getrandom(&number, sizeof number, 0) != sizeof number) throw FileError("the system gives no random numbers");
  return number;
}

}  // namespace

std::filesystem::path make_temporary(const std::filesystem::path& path) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::string name = fmt::format("{}.{:06x}.part", path.string(), unforeseen_number() >> 8);
    remember(name);  // first: a signal between the two would leave the file behind
    const int file = open(name.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666);
    if (file >= 0) {
      close(file);
      return name;
    }
    const int reason = errno;
    forget(name);
    if (reason != EEXIST) {
      throw FileError(fmt::format("{}: cannot be written: {}", path.string(), std::strerror(reason)));
    }
  }
  throw FileError(
      fmt::format("{}: cannot be written: every name for a temporary file beside it is taken", path.string()));
}

void sync_temporary(const std::filesystem::path& temporary, const std::filesystem::path& path) {
  const int file = open(temporary.c_str(), O_RDWR | O_CLOEXEC);
  const bool synced = file >= 0 && fsync(file) == 0;
  const int reason = errno;
  const bool closed = file < 0 || close(file) == 0;
  if (synced && closed) return;
  throw FileError(fmt::format("{}: cannot be written: {}", path.string(), std::strerror(synced ? errno : reason)));
}

void keep_temporary(const std::filesystem::path& temporary, const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) throw FileError(fmt::format("{}: cannot be written: {}", path.string(), error.message()));
  forget(temporary.string());
}

void remove_temporary(const std::filesystem::path& temporary) {
  std::error_code ignored;
  std::filesystem::remove(temporary, ignored);
  forget(temporary.string());
}

}  // namespace io

}  // namespace laprox
