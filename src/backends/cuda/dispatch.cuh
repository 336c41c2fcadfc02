#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backends/cuda/layer.h"

namespace laprox::cuda {

/// Calls f.operator()<T>() with the layer's element type.
template <class F>
void for_element(Element element, const F& f) {
  switch (element) {
    case Element::float16:
      return f.template operator()<__half>();
    case Element::bfloat16:
      return f.template operator()<__nv_bfloat16>();
    case Element::float32:
      return f.template operator()<float>();
  }
}

/// Calls f.operator()<T, Size>() with the layer's element type and a padded row length.
template <class F>
void for_element_and_size(Element element, int size, const F& f) {
  for_element(element, [&]<class T>() {
    if (size == 64) return f.template operator()<T, 64>();
    if (size == 128) return f.template operator()<T, 128>();
    return f.template operator()<T, 256>();
  });
}

/// The same for half types; float32 is not called for.
template <class F>
void for_half_and_size(Element element, int size, const F& f) {
  for_element_and_size(element, size, [&]<class T, int Size>() {
    if constexpr (sizeof(T) == 2) f.template operator()<T, Size>();
  });
}

}  // namespace laprox::cuda
