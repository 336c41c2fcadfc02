#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/cpu/far_rows.h"
#include "backends/cpu/scoring.h"
#include "base/parallel.h"

namespace laprox::cpu {

namespace {

/// A sum of energies that is this much smaller than its terms could add up to has lost too many of float32's digits.
constexpr double kCancelled = 256;

/// Recomputes sums of one head from the differences o - v_i, which costs more and rounds less.
class Differences {
 public:
  Differences(const LayerTensors& layer, Index head, Index distance, const ValuePanels& values, const HeadForms& forms,
              const HeadSoftmax& softmax)
      : layer_(layer), head_(head), distance_(distance), values_(values), softmax_(softmax) {
    // M = L L^T, so that ||(o - v) L||^2 is the form of the difference.
    const Eigen::SelfAdjointEigenSolver<Matrix> solver(forms.gram.cast<double>());
    factor_ = solver.eigenvectors() * solver.eigenvalues().cwiseMax(0.0).cwiseSqrt().asDiagonal();
    outputs_.noalias() = softmax.outputs * factor_.cast<float>();
  }

  /// sum over t >= key + distance of c^2 ||(o_t - v) W_O||^2.
  double energy(Index key) const {
    const AttentionForm& form = layer_.attention;
    const Eigen::RowVectorXf value = (values_.centred.exact(key) * factor_).cast<float>();
    const auto k = layer_.k.matrix<float>(head_ / layer_.geometry.group()).row(key);
    const auto q = layer_.q.matrix<float>(head_);
    double sum = 0;
    const Index unstored = layer_.context_length - layer_.queries();
    for (Index t = std::max(softmax_.first, key + distance_); t < layer_.context_length && form.first_visible(t) <= key;
         ++t) {
      const Index place = t - softmax_.first;
      if (softmax_.top[place] == key) {
        sum += softmax_.top_energy[place];
        continue;
      }
      double logit = form.scale * static_cast<double>(q.row(t - unstored).dot(k));
      if (form.softcap > 0) logit = form.softcap * std::tanh(logit / form.softcap);
      const double e = std::exp(logit - softmax_.largest[place]), odds = e / (softmax_.total[place] - e);
      sum += odds * odds * static_cast<double>((outputs_.row(place) - value).squaredNorm());
    }
    return sum;
  }

 private:
  const LayerTensors& layer_;
  Index head_, distance_;
  const ValuePanels& values_;
  const HeadSoftmax& softmax_;
  Matrix factor_;        ///< L [d_v, d_v]
  FloatMatrix outputs_;  ///< [queries, d_v] o L
};

/// One KV head's pass over the last `queries` queries: column sums and energies of its group.
class GroupPass {
 public:
  GroupPass(const LayerTensors& layer, Index kv_head, Index distance, Index queries, int threads)
      : layer_(layer),
        first_head_(kv_head * layer.geometry.group()),
        distance_(distance),
        first_query_(layer.context_length - queries),
        threads_(threads),
        keys_(layer.geometry.head_size, layer.context_length),
        values_(layer, kv_head, threads) {
    const float* k = layer.k.data<float>() + kv_head * layer.tokens * layer.geometry.head_size;
    parallel_for(threads, keys_.count(),
                 [&](Index p) { keys_.set_panel_transposed(p, k, layer.geometry.head_size, 1.0F); });
  }

  /// Fills the group's rows of `columns` and returns its energies [C].
  Eigen::RowVectorXd run(Matrix& columns) {
    const Index context = layer_.context_length, group = layer_.geometry.group(), tasks = group * kCausalChunks;
    std::vector<HeadForms> forms;
    std::vector<HeadSoftmax> softmax;
    for (Index a = 0; a < group; ++a) {
      forms.emplace_back(layer_, first_head_ + a, values_);
      softmax.emplace_back(layer_, first_query_);
    }
    Matrix partial = Matrix::Zero(3 * tasks, padded(context));
    parallel_for(threads_, tasks, [&](Index task) {
      const auto a = static_cast<std::size_t>(task / kCausalChunks);
      const Index chunk = task % kCausalChunks, end = causal_chunk_begin(chunk + 1, context, first_query_);
      FarRows rows(layer_, first_head_ + static_cast<Index>(a), distance_, keys_, values_, forms[a], softmax[a]);
      for (Index query = causal_chunk_begin(chunk, context, first_query_); query < end; query += kQueryBlock) {
        rows.add(query, std::min(end, query + kQueryBlock), &partial(task, 0), &partial(tasks + task, 0),
                 &partial(2 * tasks + task, 0));
      }
    });
    Eigen::RowVectorXd energies = Eigen::RowVectorXd::Zero(context);
    for (Index a = 0; a < group; ++a) {
      const auto sum = [&](Index kind) {
        Eigen::RowVectorXd total = Eigen::RowVectorXd::Zero(context);
        for (Index chunk = 0; chunk < kCausalChunks; ++chunk) {
          total += partial.row(kind * tasks + a * kCausalChunks + chunk).head(context);
        }
        return total;
      };
      columns.row(first_head_ + a) = sum(0);
      const auto at = static_cast<std::size_t>(a);
      energies += settled(a, sum(1), sum(2), forms[at], softmax[at]);
    }
    return energies;
  }

 private:
  /// A head's energies, those that cancelled formed again.
  Eigen::RowVectorXd settled(Index a, Eigen::RowVectorXd energies, const Eigen::RowVectorXd& bounds,
                             const HeadForms& forms, const HeadSoftmax& softmax) const {
    std::vector<Index> open;
    for (Index key = 0; key < energies.size(); ++key) {
      if (bounds[key] > kCancelled * energies[key]) open.push_back(key);
    }
    if (open.empty()) return energies;
    const Differences differences(layer_, first_head_ + a, distance_, values_, forms, softmax);
    parallel_for(threads_, static_cast<Index>(open.size()), [&](Index n) {
      const Index key = open[n];
      energies[key] = differences.energy(key);
    });
    return energies;
  }

  const LayerTensors& layer_;
  Index first_head_, distance_, first_query_;
  int threads_;
  Panels keys_;
  ValuePanels values_;
};

}  // namespace

CausalSums causal_sums(const LayerTensors& layer, Index distance, Index queries, int threads) {
  CausalSums sums{Matrix(layer.geometry.query_heads, layer.context_length),
                  Matrix(layer.geometry.kv_heads, layer.context_length)};
  for (Index kv_head = 0; kv_head < layer.geometry.kv_heads; ++kv_head) {
    sums.far.row(kv_head) = GroupPass(layer, kv_head, distance, queries, threads).run(sums.columns);
  }
  return sums;
}

}  // namespace laprox::cpu
