#pragma once

#include <cuda.h>

namespace laprox::cuda {

/// [matrices, rows, size] elements of a half type in device memory as the copy engine of sm_90 reads them: in panels of
/// 64 elements by `panel_rows` rows, exchanged as RightFactor::panels (wgmma.cuh) has it, with zeros for rows that are
/// not there. Kernels take it as a __grid_constant__. Throws BackendError.
CUtensorMap tile_map(const void* elements, int size, int rows, int matrices, int panel_rows = 64);

}  // namespace laprox::cuda
