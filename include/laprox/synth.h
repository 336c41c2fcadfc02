#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "laprox/sweep.h"

namespace laprox {

/// The shape of a synthetic dump, and the seed of its contents.
struct SynthOptions {
  Index layers = 2;
  LayerGeometry geometry{4, 2, 16, 16, 32};
  Index context_length = 1024;  ///< C
  Index decoded = 64;           ///< T = C + decoded
  Index recent_queries = 0;     ///< 0: all queries are stored; else the last ones of the prompt, and the decoded ones
  double softcap = 0;
  Index sliding_window = 0;  ///< 0: none
  bool alternating = false;  ///< the sliding window holds in every other layer only
  bool sinks = false;        ///< learned sink logits
  bool bias = false;
  ElementType type = ElementType::float16;
  std::string adversarial;  ///< empty, or one of adversarial_kinds(): contents that break careless arithmetic
  std::uint64_t seed = 0;
  int gzip = 0;       ///< level at which tensors are compressed; 0: not at all
  std::string model;  ///< written into the dump
};

/// Names of the presets: shapes of real models.
std::vector<std::string> synth_presets();
/// A preset's shape; throws UsageError, with the nearest name, where there is none.
SynthOptions synth_preset(const std::string& name);

/// A way in which a synthetic dump is hard on arithmetic; everything else about it stays as it was.
struct AdversarialKind {
  const char* name;
  const char* summary;
};
const std::vector<AdversarialKind>& adversarial_kinds();

/// Bytes of the dump that the options describe, before they are compressed.
double synth_bytes(const SynthOptions& options);

/// Writes a dump whose attention has what real attention has: sinks, local heads, heavy hitters, topics that come and
/// go, and values of uneven size. The same options give the same values on any machine, and the same bytes where they
/// are not compressed: contents are integer hashes and IEEE sums and products in a fixed order, with no library
/// function whose last digit varies. One layer is in memory. Throws UsageError (impossible shapes, or `path` exists and
/// not `replace`) and FileError.
void synthesize_dump(const std::filesystem::path& path, const SynthOptions& options, bool replace,
                     const Progress& progress = {});

}  // namespace laprox
