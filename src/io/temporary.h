#pragma once

#include <filesystem>

namespace laprox::io {

/// An empty file beside `path`, under a name that nobody can have prepared. It is removed where a signal ends the
/// program (laprox::remove_temporaries_on_signals). Throws FileError where the folder cannot be written.
std::filesystem::path make_temporary(const std::filesystem::path& path);

/// Has the disk store what was written: some errors show only then, and a crash of the machine must not leave an empty
/// file under the final name. Throws FileError, which names `path`, the final one.
void sync_temporary(const std::filesystem::path& temporary, const std::filesystem::path& path);

/// Gives it its final name. Throws FileError.
void keep_temporary(const std::filesystem::path& temporary, const std::filesystem::path& path);

void remove_temporary(const std::filesystem::path& temporary);

}  // namespace laprox::io
