#pragma once

#include <vector>

#include "laprox/dump_info.h"

namespace laprox {

/// Which rank works on which layer of some dumps: [dump][layer]. Layers that read one cache stay together; the largest
/// pieces of work, counted in stored numbers, are given away first, each to the rank that has least.
std::vector<std::vector<Index>> share_layers(const std::vector<const DumpInfo*>& dumps, Index ranks);

/// The layers, ascending, that a rank works on, `rank_of` being each one's rank.
std::vector<Index> layers_of(const std::vector<Index>& rank_of, Index rank);

/// How many dumps, one behind the other, are worked on at a time: one where one process is alone, else as many as give
/// each rank about four pieces of work, so that few ranks wait for others and none holds much. Their sum is the number
/// of dumps.
std::vector<std::size_t> group_dumps(const std::vector<const DumpInfo*>& dumps, Index ranks);

}  // namespace laprox
