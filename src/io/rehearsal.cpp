#include "io/rehearsal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>
#include <set>

#include "io/file_state.h"
#include "io/rehearsal_walk.h"
#include "laprox/error.h"
#include "laprox/trust.h"

namespace laprox {

namespace {

std::atomic<bool> trusted = false;

}  // namespace

void trust_files(bool trust) { trusted = trust; }

namespace io {

namespace {

constexpr int kOutOfMemory = 41;  // the child's exit code where HDF5 ran into its limit; a sanitizer ends it with 1

/// Files that were walked to the end, and what they were then.
class Passed {
 public:
  bool holds(const FileState& file) {
    const std::scoped_lock lock(mutex_);
    return files_.contains(file);
  }
  void add(const FileState& file) {
    const std::scoped_lock lock(mutex_);
    files_.insert(file);
  }

 private:
  std::mutex mutex_;
  std::set<FileState> files_;
};

Passed& passed() {
  static Passed files;
  return files;
}

struct Rehearsed {
  std::filesystem::path path;
  FileState state;
};

/// In the child: writes a byte for each file that was walked to its end.
[[noreturn]] void walk_and_exit(const std::vector<Rehearsed>& files, std::size_t next, int progress) {
  const int nowhere = open("/dev/null", O_WRONLY);
  for (const int stream : {STDOUT_FILENO, STDERR_FILENO}) {
    if (nowhere >= 0) dup2(nowhere, stream);
  }
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGALRM, SIGXCPU, SIGSEGV, SIGBUS, SIGABRT})
    std::signal(signal, SIG_DFL);
  const rlimit core{0, 0};
  setrlimit(RLIMIT_CORE, &core);
  for (; next < files.size(); ++next) {
    // _exit: the parent's buffers and handlers are not the child's to flush or to run.
    if (!walk_file(files[next].path.c_str())) _exit(kOutOfMemory);
    if (write(progress, "", 1) != 1) _exit(1);
  }
  _exit(0);
}

/// How many bytes come before the other end is closed.
std::size_t count_bytes(int pipe) {
  std::size_t count = 0;
  char bytes[512];
  for (;;) {
    const ssize_t got = read(pipe, bytes, sizeof bytes);
    if (got > 0) count += static_cast<std::size_t>(got);
    if (got == 0 || (got < 0 && errno != EINTR)) return count;
  }
}

std::string outcome(int status) {
  if (WIFEXITED(status) && WEXITSTATUS(status) == kOutOfMemory)
    return "the HDF5 library wants more memory for it than a file of its size can need";
  if (!WIFSIGNALED(status)) return "the HDF5 library gives up on it";
  if (WTERMSIG(status) == SIGALRM || WTERMSIG(status) == SIGXCPU)
    return "the HDF5 library does not come to an end with it";
  return fmt::format("the HDF5 library crashes on it (signal {})", WTERMSIG(status));
}

/// What became of a child: how many files it walked to their ends, and why it ended.
struct Ending {
  std::size_t walked = 0;
  int status = 0;
  bool clean() const { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }
};

/// Walks the files from `next` on in a child process, to the first that ends it. Nothing where there can be no child.
std::optional<Ending> walk_in_child(const std::vector<Rehearsed>& files, std::size_t next) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return std::nullopt;
  const pid_t child = fork();
  if (child == 0) walk_and_exit(files, next, ends[1]);
  close(ends[1]);
  std::optional<Ending> ending;
  if (child > 0) {
    ending.emplace().walked = count_bytes(ends[0]);
    while (waitpid(child, &ending->status, 0) < 0 && errno == EINTR) {
    }
  }
  close(ends[0]);
  return ending;
}

}  // namespace

void rehearse(const std::filesystem::path& path, const std::string& kind) {
  const auto state = regular_file(path);
  if (trusted || !state || passed().holds(*state)) return;
  const auto ending = walk_in_child({{path, *state}}, 0);
  if (!ending) return;  // no process left for the rehearsal: the file is opened all the same
  if (!ending->clean()) {
    throw DumpError(path.string(), "file", kind + " (HDF5)", "a damaged file: " + outcome(ending->status),
                    "make it again, or copy it again");
  }
  passed().add(*state);
}

void rehearse_all(const std::vector<std::filesystem::path>& paths) {
  std::vector<Rehearsed> files;
  for (const auto& path : paths) {
    const auto state = regular_file(path);
    if (state && !trusted && !passed().holds(*state)) files.push_back({path, *state});
  }
  for (std::size_t next = 0; next < files.size(); ++next) {  // one that ends its child is left to rehearse()
    const auto ending = walk_in_child(files, next);
    if (!ending) return;
    for (const std::size_t end = next + ending->walked; next < end; ++next) passed().add(files[next].state);
  }
}

}  // namespace io

}  // namespace laprox
