#include "backends/cpu/group_removal.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"

namespace laprox::cpu {

namespace {

/// What float32 sums of the four terms may be off by, relative to the largest that they could add up to.
constexpr double kRounding = 1.0 / (1 << 20);
/// The share of the result that such an error may be before the sum is formed again: of a maximum, and of each of many
/// terms.
constexpr double kTolerance = 1.0 / (1 << 14);
constexpr double kTermTolerance = kTolerance / 4;

}  // namespace

GroupRemoval::GroupRemoval(const LayerTensors& layer, Index kv_head, Index first_query, Index queries, OverQueries over,
                           bool joint, int threads)
    : group_(layer.geometry.group()),
      kv_head_(kv_head),
      over_(over),
      joint_(joint),
      values_(layer, kv_head),
      attention_(layer, kv_head, first_query, queries, values_, threads),
      dominants_(static_cast<std::size_t>(attention_.stride()), nullptr) {
  for (const Dominant& each : attention_.dominants()) dominants_[each.row] = &each;
  form_pairs(layer, kv_head, joint, threads);
  find_known();
}

void GroupRemoval::form_pairs(const LayerTensors& layer, Index kv_head, bool joint, int threads) {
  for (Index a = 0; a < group_; ++a) {
    for (Index b = a; b < (joint ? group_ : a + 1); ++b) pairs_.push_back({a, b});
  }
  std::vector<FloatMatrix> grams(static_cast<std::size_t>(group_ * group_));
  parallel_for(threads, static_cast<Index>(pairs_.size()), [&](Index p) {
    const auto [a, b] = pairs_[p];
    FloatMatrix& found = grams[a * group_ + b];
    found = gram(layer, kv_head * group_ + a, kv_head * group_ + b);
    if (a != b) grams[b * group_ + a] = found.transpose();
  });
  for (const auto& [a, b] : pairs_) forms_.emplace_back(grams[a * group_ + b]);
  norm_.emplace_back(layer, kv_head, grams, joint);
  form_moments(grams);
}

/// The vectors and numbers of each query and pair of heads. A pair of different heads stands for both of its orders.
void GroupRemoval::form_moments(const std::vector<FloatMatrix>& grams) {
  const Index stride = attention_.head_stride(), size = values_.size(),
              columns = static_cast<Index>(pairs_.size()) * stride;
  FloatMatrix vectors(columns, size);
  squares_ = Buffer<float>(columns);
  roots_ = Buffer<float>(group_ * stride);
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    const auto [a, b] = pairs_[p];
    const Matrix gram = grams[a * group_ + b].cast<double>();
    const auto of_a = attention_.outputs().middleRows(a * stride, stride);
    const auto of_b = attention_.outputs().middleRows(b * stride, stride);
    const Matrix from_b = of_b * gram.transpose();
    const Matrix both = a == b ? Matrix(2 * from_b) : Matrix(2 * (from_b + of_a * gram));
    vectors.middleRows(static_cast<Index>(p) * stride, stride) = (-both).cast<float>();
    for (Index t = 0; t < stride; ++t) {
      const double square = of_a.row(t).dot(from_b.row(t));
      squares_[static_cast<Index>(p) * stride + t] = static_cast<float>(a == b ? square : 2 * square);
      if (a == b) roots_[a * stride + t] = static_cast<float>(std::sqrt(std::max(0.0, square)));
    }
  }
  moments_ = Panels(size, columns);
  for (Index panel = 0; panel < moments_.count(); ++panel) {
    moments_.set_panel_transposed(panel, vectors.data(), size, 1.0F);
  }
}

/// The energies of the entries that dominate a row, at that row's query.
void GroupRemoval::find_known() {
  std::vector<Open> open;
  for (const Dominant& each : attention_.dominants()) {
    open.push_back({each.token, each.row % attention_.head_stride()});
  }
  const Eigen::VectorXd energies = exact(open);
  for (std::size_t n = 0; n < open.size(); ++n) {
    known_[{open[n].token, open[n].query}] = energies[static_cast<Index>(n)];
  }
}

void GroupRemoval::energies(Index first, Index last, double* out) const {
  const Index count = last - first, size = values_.size(), pairs = static_cast<Index>(pairs_.size());
  Buffer<float> x(count * size), linear(count * padded(moments_.columns())), odds(attention_.stride());
  Buffer<float> each(attention_.head_stride()), bounds(attention_.head_stride());
  values_.rows(first, last, x.data());
  Matrix forms(pairs, count);
  for (Index p = 0; p < pairs; ++p) {
    forms_[p].evaluate(x.data(), count, &forms(p, 0));
    if (pairs_[p].a != pairs_[p].b) forms.row(p) *= 2;
  }
  const Index linear_stride = padded(moments_.columns());
  multiply(count, size, {x.data(), size, 1}, moments_, 0, moments_.count(), linear.data(), linear_stride);
  std::vector<Open> open;
  for (Index token = first; token < last; ++token) {
    attention_.odds(token, odds.data());
    const float largest = *std::max_element(odds.data(), odds.data() + attention_.stride());
    // Squares of the odds could be too small for float32; relative to the largest they are not.
    const float inverse = largest > 0 ? 1 / largest : 0.0F;
    for (Index r = 0; r < attention_.stride(); ++r) odds[r] *= inverse;
    expand(odds.data(), &forms(0, token - first), count, linear.data() + (token - first) * linear_stride, each.data(),
           bounds.data());
    const double scale = static_cast<double>(largest) * static_cast<double>(largest);
    out[token - first] = reduce(token, scale, each.data(), bounds.data(), open);
  }
  const Eigen::VectorXd again = exact(open);
  for (std::size_t n = 0; n < open.size(); ++n) {
    double& energy = out[open[n].token - first];
    const double found = again[static_cast<Index>(n)];
    energy = over_ == OverQueries::sum ? energy + found : std::max(energy, found);
  }
}

/// One token's energy at each query, and the largest that the absolute values of its terms could add up to.
void GroupRemoval::expand(const float* odds, const double* forms, Index forms_stride, const float* linear,
                          float* energies, float* bounds) const {
  const Index stride = attention_.head_stride();
  for (Index t = 0; t < stride; t += kLanes) {
    Lanes energy{}, norms{}, separate{};
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      const Index at = static_cast<Index>(p) * stride + t;
      const auto [a, b] = pairs_[p];
      const float form = static_cast<float>(forms[static_cast<Index>(p) * forms_stride]);
      const Lanes odds_a = load(odds + a * stride + t);
      energy += odds_a * load(odds + b * stride + t) * (form + load(&squares_[at]) + load(linear + at));
      if (a != b) continue;
      const Lanes norm = odds_a * (std::sqrt(std::max(0.0F, form)) + load(&roots_[a * stride + t]));
      norms += norm;
      separate += norm * norm;
    }
    store(energies + t, energy);
    store(bounds + t, joint_ ? norms * norms : separate);
  }
}

/// The sum or the maximum over the queries, without those that must be formed again, which join `open`.
double GroupRemoval::reduce(Index token, double scale, const float* energies, const float* bounds,
                            std::vector<Open>& open) const {
  const bool sums = over_ == OverQueries::sum;
  const Index queries = attention_.queries();
  const auto known = known_.lower_bound({token, 0});
  const bool has_known = known != known_.end() && known->first.first == token;
  const auto known_at = [&](Index t) {
    if (!has_known) return known_.end();
    return known_.find({token, t});
  };
  double sure = 0;
  for (Index t = 0; t < queries; ++t) {
    const auto found = known_at(t);
    const double least = found != known_.end() ? found->second : scale * (energies[t] - kRounding * bounds[t]);
    sure = sums ? sure + least : std::max(sure, least);
  }
  sure = std::max(sure, 0.0);
  double result = 0;
  for (Index t = 0; t < queries; ++t) {
    const auto found = known_at(t);
    const double energy = found != known_.end() ? found->second : scale * energies[t];
    const double doubt = found != known_.end() ? 0 : scale * kRounding * bounds[t];
    const bool matters = sums || energy + doubt >= sure;
    if (matters && doubt > (sums ? kTermTolerance : kTolerance) * sure) {
      open.push_back({token, t});
    } else {
      result = sums ? result + energy : std::max(result, energy);
    }
  }
  return std::max(result, 0.0);
}

/// The heads' vectors c (o - v) of one token and query, side by side.
void GroupRemoval::write_moved(Index token, Index query, const float* odds, Matrix& moved, Index row) const {
  const Index size = values_.size();
  for (Index a = 0; a < group_; ++a) {
    const Index at = a * attention_.head_stride() + query;
    const Dominant* dominant = dominants_[at];
    auto target = moved.row(row).segment(a * size, size);
    if (dominant && dominant->token == token) {
      target = dominant->moved;
    } else {
      target = static_cast<double>(odds[at]) * (attention_.outputs().row(at) - values_.exact(token));
    }
  }
}

Eigen::VectorXd GroupRemoval::exact(const std::vector<Open>& open) const {
  constexpr std::size_t kRows = 64;
  Eigen::VectorXd energies(static_cast<Index>(open.size()));
  Buffer<float> odds(attention_.stride());
  for (std::size_t first = 0; first < open.size(); first += kRows) {
    const std::size_t count = std::min(kRows, open.size() - first);
    Matrix moved(static_cast<Index>(count), group_ * values_.size());
    for (std::size_t n = 0; n < count; ++n) {
      const auto& [token, query] = open[first + n];
      if (n == 0 || token != open[first + n - 1].token) attention_.odds(token, odds.data());
      write_moved(token, query, odds.data(), moved, static_cast<Index>(n));
    }
    energies.segment(static_cast<Index>(first), static_cast<Index>(count)) = norm_.front().squares(moved);
  }
  return energies;
}

}  // namespace laprox::cpu
