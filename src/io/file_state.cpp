#include "io/file_state.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "laprox/error.h"

namespace laprox::io {

std::optional<FileState> regular_file(const std::filesystem::path& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return std::nullopt;
  return FileState{status.st_dev, status.st_ino, static_cast<std::uint64_t>(status.st_size), status.st_mtim.tv_sec,
                   status.st_mtim.tv_nsec};
}

FileState require_regular_file(const std::filesystem::path& path, const std::string& kind) {
  if (const auto state = regular_file(path)) return *state;
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) {
    throw FileError(fmt::format("{}: {}", path.string(), errno == ENOENT ? "no such file" : std::strerror(errno)));
  }
  throw DumpError(path.string(), "file", kind + " (HDF5)",
                  S_ISDIR(status.st_mode) ? "a directory" : "something that is no regular file (a pipe or a device)");
}

}  // namespace laprox::io
