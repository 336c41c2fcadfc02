#include "io/temporary.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
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

std::filesystem::path make_temporary(const std::filesystem::path& path) {
  std::string name = path.string() + ".XXXXXX.part";
  const int file = mkostemps(name.data(), 5, O_CLOEXEC);
  if (file < 0) throw FileError(fmt::format("{}: cannot be written: {}", path.string(), std::strerror(errno)));
  const mode_t mask = umask(0);
  umask(mask);
  fchmod(file, 0666 & ~mask);  // mkostemps makes it private; the output is as any other file
  close(file);
  remember(name);
  return name;
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
