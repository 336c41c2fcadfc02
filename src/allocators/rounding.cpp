#include "allocators/rounding.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "laprox/error.h"

namespace laprox {

std::vector<Index> largest_remainder(const std::vector<double>& quotas, Index total, Index cap) {
  return largest_remainder(quotas, total, std::vector<Index>(quotas.size(), cap));
}

std::vector<Index> largest_remainder(const std::vector<double>& quotas, Index total, const std::vector<Index>& caps) {
  // Quotas come from products such as 6 * 0.8; without a grain, their rounding noise would decide ties.
  constexpr double kGrain = 1e-9;
  std::vector<Index> shares;
  std::vector<double> remainders;
  for (double quota : quotas) {
    const double whole = std::floor(quota + kGrain);
    shares.push_back(std::clamp<Index>(static_cast<Index>(whole), 0, caps[shares.size()]));
    remainders.push_back(std::round((quota - whole) / kGrain));
  }
  std::vector<std::size_t> order(quotas.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return remainders[a] > remainders[b]; });

  Index left = total - std::accumulate(shares.begin(), shares.end(), Index{0});
  require(left >= 0 && total <= std::accumulate(caps.begin(), caps.end(), Index{0}),
          "quotas are below the total and the caps above");
  while (left > 0) {
    for (std::size_t i : order) {
      if (left > 0 && shares[i] < caps[i]) {
        ++shares[i];
        --left;
      }
    }
  }
  return shares;
}

}  // namespace laprox
