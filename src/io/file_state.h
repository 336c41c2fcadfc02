#pragma once

#include <compare>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace laprox::io {

/// What says that a file is still the one that was looked at before.
struct FileState {
  std::uint64_t device = 0, inode = 0, size = 0;
  std::int64_t seconds = 0, nanoseconds = 0;  ///< of the last change
  auto operator<=>(const FileState&) const = default;
};

/// Of a regular file; nothing where there is none of that name.
std::optional<FileState> regular_file(const std::filesystem::path& path);

/// The same, or a FileError or a DumpError that says what is there instead; `kind` is what the file should be.
FileState require_regular_file(const std::filesystem::path& path, const std::string& kind);

}  // namespace laprox::io
