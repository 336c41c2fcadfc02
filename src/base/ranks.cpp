#include "laprox/ranks.h"

namespace laprox {

Ranks& single_rank() {
  static SingleRank rank;  // without a state of its own, so that threads may share it
  return rank;
}

}  // namespace laprox
