#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "laprox/progress.h"
#include "laprox/tensor.h"

namespace laprox::python {

namespace nb = nanobind;

// One function per file of this folder: each adds its part to the module.
void add_errors(nb::module_& module);
void add_names(nb::module_& module);
void add_source(nb::module_& module);
void add_policies(nb::module_& module);
void add_layer_view(nb::module_& module);
void add_replay(nb::module_& module);
void add_cuts(nb::module_& module);
void add_verify(nb::module_& module);

/// The element type that the package calls so.
ElementType element_type(const std::string& name);

/// Values that become a NumPy array without being copied.
template <class T>
nb::ndarray<nb::numpy, T> to_numpy(std::vector<T> values, std::vector<std::size_t> shape) {
  auto* kept = new std::vector<T>(std::move(values));
  const nb::capsule owner(kept, [](void* memory) noexcept { delete static_cast<std::vector<T>*>(memory); });
  return nb::ndarray<nb::numpy, T>(kept->data(), shape.size(), shape.data(), owner);
}

/// A matrix [rows, columns], the same way.
inline nb::ndarray<nb::numpy, double> to_numpy(Matrix matrix) {
  auto* kept = new Matrix(std::move(matrix));
  const nb::capsule owner(kept, [](void* memory) noexcept { delete static_cast<Matrix*>(memory); });
  const std::size_t shape[] = {static_cast<std::size_t>(kept->rows()), static_cast<std::size_t>(kept->cols())};
  return nb::ndarray<nb::numpy, double>(kept->data(), 2, shape, owner);
}

/// Progress that tells a Python callable (done, total, what), unless it is None, and lets Ctrl-C through.
inline Progress make_progress(nb::object callback) {
  return [callback = std::move(callback)](Index done, Index total, const std::string& what) {
    const nb::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (!callback.is_none()) callback(done, total, what.c_str());
  };
}

}  // namespace laprox::python
