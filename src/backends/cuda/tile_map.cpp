#include "backends/cuda/tile_map.h"

#include <cudaTypedefs.h>

#include "backends/cuda/device.h"
#include "laprox/error.h"

namespace laprox::cuda {

namespace {

constexpr cuuint32_t kPanelElements = 64;

/// The driver's function, found at run time: the program does not link the driver's library.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result),
          "asking the driver for tensor maps");
#else
    check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result),
          "asking the driver for tensor maps");
#endif
    return result == cudaDriverEntryPointSuccess ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function)
                                                 : nullptr;
  }();
  if (!found) throw BackendError("CUDA: the NVIDIA driver has no tensor maps; update it, or use --backend cpu");
  return found;
}

}  // namespace

CUtensorMap tile_map(const void* elements, int size, int rows, int matrices, int panel_rows) {
  const auto width = static_cast<cuuint64_t>(size), height = static_cast<cuuint64_t>(rows);
  const cuuint64_t sizes[] = {width, height, static_cast<cuuint64_t>(matrices)};
  const cuuint64_t strides[] = {2 * width, 2 * width * height};  // bytes, of the second dimension on
  const cuuint32_t box[] = {kPanelElements, static_cast<cuuint32_t>(panel_rows), 1}, steps[] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result = encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, const_cast<void*>(elements), sizes,
                                    strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(result == CUDA_SUCCESS, "a layer's rows are laid out for tensor maps");
  return map;
}

}  // namespace laprox::cuda
