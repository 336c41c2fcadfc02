#include "laprox/methods.h"

#include <algorithm>

namespace laprox {

const std::vector<Method>& methods() {
  static const std::vector<Method> all{
      {"adakv", "snapkv+ada", "SnapKV's scores, a layer's budget split over its heads by one top-K and a floor",
       "AdaKV, 2024, arXiv 2407.11550", false},
      {"pyramidkv", "snapkv+pyramid", "SnapKV's scores, more budget for the lower layers",
       "PyramidKV, 2024, arXiv 2406.02069", true},
      {"layer-defensivekv", "defensivekv+global:normalize=false,hard-window=false",
       "DefensiveKV's scores, one top-K over the whole model", "DefensiveKV, 2025, arXiv 2510.13334", true},
      {"laprox-far", "laprox-r:far=64,far-weight=8",
       "LaProx-R's scores, with what distant queries of the prompt would lose", "LaProx-R, 2026, this project", true},
      {"laprox-mix", "laprox-r:far=64,far-weight=8,far-queries=1024,pool=avg,kernel=81,own=4",
       "LaProx-far's scores by the last queries; an entry's own energy counts beside the mean around it",
       "LaProx-R, 2026, this project", true},
      {"keydiff-block128", "keydiff:block=128", "KeyDiff as a cache that evicts after every block of 128 tokens",
       "KeyDiff, 2025, arXiv 2504.15364", false},
  };
  return all;
}

const Method* find_method(std::string_view name) {
  const auto found = std::find_if(methods().begin(), methods().end(), [&](const Method& m) { return m.name == name; });
  return found == methods().end() ? nullptr : &*found;
}

}  // namespace laprox
