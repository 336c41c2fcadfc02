#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

namespace laprox::io {

/// SHA-256 of a file's bytes in hexadecimal, as sha256sum prints it. Throws FileError.
std::string sha256_of_file(const std::filesystem::path& path);
/// The same of bytes in memory.
std::string sha256_of(std::span<const std::byte> bytes);

}  // namespace laprox::io
