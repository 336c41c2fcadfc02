#pragma once

#include <filesystem>

#include "laprox/dump_info.h"

namespace laprox::bench {

/// The shape of one llama-3.1-8b layer.
inline constexpr LayerGeometry kLlama{32, 8, 128, 128, 4096};

/// A layer of random float32 tensors of that shape with `context` prompt tokens and `decoded` more, holding the last
/// `queries` queries. Kept between calls with the same arguments.
const LayerTensors& random_layer(Index context, Index decoded, Index queries);

/// A dump of one such layer (float16) in a temporary folder, written once: `window` prompt queries and all decoded
/// ones.
const std::filesystem::path& random_dump(Index context, Index decoded, Index window);

}  // namespace laprox::bench
