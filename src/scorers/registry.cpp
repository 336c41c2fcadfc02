#include "laprox/scorer.h"

namespace laprox {

#define LAPROX_SCORER(name) ScorerInfo name##_info();
#include "scorers/list.inc"
#undef LAPROX_SCORER

const std::vector<ScorerInfo>& scorers() {
#define LAPROX_SCORER(name) name##_info(),
  static const std::vector<ScorerInfo> registry{
#include "scorers/list.inc"
  };
#undef LAPROX_SCORER
  return registry;
}

}  // namespace laprox
