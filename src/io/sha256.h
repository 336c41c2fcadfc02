#pragma once

#include <filesystem>
#include <string>

namespace laprox::io {

/// SHA-256 of a file's bytes in hexadecimal, as sha256sum prints it. Throws FileError.
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace laprox::io
