#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "laprox/array_source.h"
#include "laprox/error.h"
#include "module.h"

namespace laprox::python {

namespace {

ElementType element_type(const std::string& name) {
  for (ElementType type : {ElementType::float16, ElementType::bfloat16, ElementType::float32, ElementType::float64}) {
    if (to_string(type) == name) return type;
  }
  throw Bug("the package passes known element types, not " + name);
}

/// A reference to a Python object that any thread may drop.
std::shared_ptr<const void> share(nb::object object) {
  return {object.release().ptr(), [](void* held) {
            const nb::gil_scoped_acquire gil;
            Py_DECREF(static_cast<PyObject*>(held));
          }};
}

/// Calls fetch(layer, name, first, last), which answers (contiguous array, name of its element type).
ArraySource::Fetch fetch_through(nb::object fetch) {
  const auto shared = share(std::move(fetch));
  return [shared](Index layer, LayerArray array, DumpInfo::Rows rows) {
    const nb::gil_scoped_acquire gil;
    const nb::handle callable(static_cast<PyObject*>(const_cast<void*>(shared.get())));
    const auto answer = nb::cast<nb::tuple>(callable(layer, std::string(to_string(array)), rows.first, rows.last));
    const auto values = nb::cast<nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>>(answer[0]);
    ArrayView view;
    view.type = element_type(nb::cast<std::string>(answer[1]));
    for (std::size_t i = 0; i < values.ndim(); ++i) view.shape.push_back(static_cast<Index>(values.shape(i)));
    view.data = static_cast<const std::byte*>(values.data());
    view.owner = share(nb::borrow(answer[0]));
    require(static_cast<Index>(values.itemsize()) == size_of(view.type), "an array is what its element type says");
    return view;
  };
}

template <class T>
T get(const nb::dict& values, const char* name) {
  return nb::cast<T>(values[name]);
}

LayerSummary summary_of(const nb::dict& layer) {
  LayerSummary summary;
  summary.geometry = {get<Index>(layer, "query_heads"), get<Index>(layer, "kv_heads"), get<Index>(layer, "head_size"),
                      get<Index>(layer, "value_size"), get<Index>(layer, "model_size")};
  summary.attention.scale = get<double>(layer, "scale");
  summary.attention.softcap = get<double>(layer, "softcap");
  summary.attention.sliding_window = get<Index>(layer, "sliding_window");
  summary.attention.sinks = get<std::vector<double>>(layer, "sinks");
  summary.attention.rope_inv_freq = get<std::vector<double>>(layer, "rope_inv_freq");
  summary.kv_source = get<Index>(layer, "kv_source");
  summary.has_bias = get<bool>(layer, "has_bias");
  summary.has_residual_norms = get<bool>(layer, "has_residual_norms");
  summary.has_output = get<bool>(layer, "has_output");
  summary.q_type = element_type(get<std::string>(layer, "q_type"));
  summary.k_type = element_type(get<std::string>(layer, "k_type"));
  summary.v_type = element_type(get<std::string>(layer, "v_type"));
  summary.w_o_type = element_type(get<std::string>(layer, "w_o_type"));
  return summary;
}

/// An ArraySource whose file, where it has one, is hashed by Python: hash() answers the digest.
class PythonSource : public ArraySource {
 public:
  PythonSource(DumpInfo info, Fetch fetch, nb::object hash)
      : ArraySource(std::move(info), std::move(fetch)), hash_(share(std::move(hash))) {}
  std::string content_hash() const override {
    const nb::gil_scoped_acquire gil;
    return nb::cast<std::string>(nb::handle(static_cast<PyObject*>(const_cast<void*>(hash_.get())))());
  }

 private:
  std::shared_ptr<const void> hash_;
};

std::shared_ptr<LayerSource> make_source(const nb::dict& info, const nb::list& layers, nb::object fetch,
                                         nb::object hash) {
  DumpInfo dump;
  dump.path = get<std::string>(info, "name");
  dump.model = get<std::string>(info, "model");
  dump.context_length = get<Index>(info, "context_length");
  dump.tokens = get<Index>(info, "tokens");
  dump.query_positions = get<std::vector<Index>>(info, "query_positions");
  dump.output_positions = get<std::vector<Index>>(info, "output_positions");
  for (const nb::handle layer : layers) dump.layers.push_back(summary_of(nb::cast<nb::dict>(layer)));
  return std::make_shared<PythonSource>(std::move(dump), fetch_through(std::move(fetch)), std::move(hash));
}

}  // namespace

void add_source(nb::module_& module) {
  nb::class_<LayerSource>(module, "Source", "Layers that are read one at a time.");
  module.def(
      "make_source", &make_source, nb::arg("info"), nb::arg("layers"), nb::arg("fetch"), nb::arg("hash"),
      "A source from sizes (info, and a dict per layer) fetch(layer, name, first, last) -> (array, type), and hash() -> digest.");
}

}  // namespace laprox::python
