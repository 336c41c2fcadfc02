#include "laprox/scores.h"

#include <fmt/format.h>

#include <cmath>

#include "dump/range.h"
#include "laprox/error.h"

namespace laprox {

void check_finite(const Matrix& scores, const LayerView& layer, const std::string& who) {
  for (Index head = 0; head < scores.rows(); ++head) {
    for (Index token = 0; token < scores.cols(); ++token) {
      if (!std::isfinite(scores(head, token))) {
        throw BackendError(
            fmt::format("{}: layer {}, KV head {}, token {}: the score is {}: the tensors leave the range of the "
                        "backend's numbers; {}",
                        who, layer.layer(), head, token, scores(head, token), advice_on_range(layer.element_type())));
      }
    }
  }
}

}  // namespace laprox
