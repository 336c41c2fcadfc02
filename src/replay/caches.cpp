#include "replay/caches.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace laprox {

std::size_t SharedCaches::cache_of(std::size_t layer) const {
  const std::size_t owner = sources_[layer] < 0 ? layer : static_cast<std::size_t>(sources_[layer]);
  const auto before = sources_.begin() + static_cast<std::ptrdiff_t>(owner);
  return static_cast<std::size_t>(std::count_if(sources_.begin(), before, [](Index source) { return source < 0; }));
}

void SharedCaches::add(std::size_t index, const LayerScores& layer) {
  const std::size_t cache = cache_of(index);
  const double square = layer.residual_norm * layer.residual_norm;
  if (cache >= sums_.size()) {
    sums_.resize(cache + 1);
    readers_.resize(cache + 1, 0);
  }
  LayerScores& sum = sums_[cache];
  if (readers_[cache] == 0) {
    sum = layer;
    sum.residual_norm = square;
    readers_[cache] = 1;
    return;
  }
  for (std::size_t order = 0; order < sum.scores.size(); ++order) sum.scores[order] += layer.scores[order];
  sum.preference += layer.preference;
  sum.residual_norm += square;
  ++readers_[cache];
}

std::vector<LayerScores> SharedCaches::take_joint() {
  for (std::size_t cache = 0; cache < sums_.size(); ++cache) {
    if (readers_[cache] == 0) continue;
    const auto readers = static_cast<double>(readers_[cache]);
    for (Matrix& scores : sums_[cache].scores) scores /= readers;
    sums_[cache].preference /= readers;
    sums_[cache].residual_norm = std::sqrt(sums_[cache].residual_norm / readers);
  }
  return std::exchange(sums_, {});
}

void SharedCaches::spread(Selection& selection) const {
  const auto of_layers = [&](const auto& of_caches) {
    auto result = of_caches;
    result.clear();
    for (std::size_t layer = 0; layer < sources_.size(); ++layer) result.push_back(of_caches[cache_of(layer)]);
    return result;
  };
  for (auto& order : selection.orders) order = of_layers(order);
  for (HeadCounts& counts : selection.counts) counts = of_layers(counts);
}

}  // namespace laprox
