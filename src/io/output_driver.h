#pragma once

#include <H5Cpp.h>

namespace laprox::io {

/// The way in which HDF5 writes our outputs: to a file as its own driver does, but a write, a truncation or a close
/// that fails is kept to ourselves. HDF5 is not made for such failures: it frees a file that it could not close and
/// uses it again. So it goes on, and failed_write() says that what it wrote is worthless.
H5::FileAccPropList output_access();

/// The errno of the first failure of a file that was opened with output_access() and is open or was closed since
/// begin_output(); 0: none. One file is written at a time.
int failed_write();
void begin_output();

}  // namespace laprox::io
