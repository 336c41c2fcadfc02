#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace laprox::io {

/// Opens the file in a child process first and walks everything in it that will be read but the bulk of its tensors.
/// Damaged files can crash the HDF5 library or keep it busy for ever; that then happens to the child, and here it is a
/// DumpError. `kind` says what the file should be. Does nothing after trust_files(), nor with a file that has passed
/// and not changed since. Cost: a process, which is many milliseconds.
void rehearse(const std::filesystem::path& path, const std::string& kind);

/// Rehearses many files in one child process, so that rehearse() has to look only at those that did not pass.
void rehearse_all(const std::vector<std::filesystem::path>& paths);

}  // namespace laprox::io
