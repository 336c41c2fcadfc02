#pragma once

#include <string>
#include <vector>

#include "laprox/metrics.h"

namespace laprox {

/// A figure that reports hold of every (dump, policy, budget), of each layer, of the whole model, or of both. A layer's
/// array has the figure's name and the dimensions dump, policy, budget, layer; the model's array is called model_<name>
/// and has no layer.
struct Figure {
  const char* name;
  double LayerMetrics::*of_layer;  ///< nullptr: not formed of a layer's metrics
  double ModelMetrics::*of_model;  ///< nullptr: not formed of the model's metrics
  const char* layer_meaning;       ///< one line; nullptr: reports have no such array
  const char* model_meaning;
  const char* heading = nullptr;  ///< above a table of the model's figure; nullptr: tables do not show it
  bool most_is_best = false;
  bool truncated_only = false;  ///< formed only with SoftmaxMode::truncated

  std::string layer_array() const { return name; }
  std::string model_array() const { return "model_" + std::string(name); }
};

/// Every such figure, once: reports, tables, CSV and JSON are made from this list, in its order.
const std::vector<Figure>& figures();

/// The figure of that name; throws Bug where there is none.
const Figure& figure(const std::string& name);

}  // namespace laprox
