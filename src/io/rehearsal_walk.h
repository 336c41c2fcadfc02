#pragma once

namespace laprox::io {

/// Opens the file and walks everything in it that its reader will read but the bulk of its tensors, under limits of
/// time and memory that end the process or fail the walk. For a child process: it changes that process's limits and
/// alarm. False where HDF5 ran into the limit of memory.
bool walk_file(const char* path);

}  // namespace laprox::io
