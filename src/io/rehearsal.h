#pragma once

#include <filesystem>
#include <string>

namespace laprox::io {

/// Opens the file in a child process first and walks everything in it that will be read but the bulk of its tensors.
/// Damaged files can crash the HDF5 library or keep it busy for ever; that then happens to the child, and here it is a
/// DumpError. `kind` says what the file should be. Does nothing after trust_files(). Cost: a few milliseconds.
void rehearse(const std::filesystem::path& path, const std::string& kind);

}  // namespace laprox::io
