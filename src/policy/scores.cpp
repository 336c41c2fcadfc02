#include "laprox/scores.h"

#include <fmt/format.h>

#include <cmath>

#include "laprox/error.h"

namespace laprox {

void check_finite(const Matrix& scores, Index layer, const std::string& who) {
  for (Index head = 0; head < scores.rows(); ++head) {
    for (Index token = 0; token < scores.cols(); ++token) {
      if (!std::isfinite(scores(head, token))) {
        throw BackendError(
            fmt::format("{}: layer {}, KV head {}, token {}: the score is {}; the tensors leave the range of the "
                        "backend's numbers, try --backend reference (float64)",
                        who, layer, head, token, scores(head, token)));
      }
    }
  }
}

}  // namespace laprox
