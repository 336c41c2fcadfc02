#pragma once

#include <vector>

#include "laprox/sweep.h"

namespace laprox {

/// For each layer, how many leading tokens of its cache no query sees that judges or that follows the prompt: those
/// that its sliding window, and those of all layers that read the same cache, have left behind. 0 where none slides.
std::vector<Index> unseen_tokens(const DumpInfo& dump, const SweepOptions& options);

/// [layer]: how many of a selection's entries at one budget are such tokens. They are paid for and serve nothing.
std::vector<Index> unseen_entries(const Selection& selection, std::size_t budget, const std::vector<Index>& unseen);

}  // namespace laprox
