#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "laprox/array_source.h"
#include "laprox/cuda.h"
#include "laprox/error.h"
#include "module.h"

namespace laprox::python {

namespace {

/// A reference to a Python object that any thread may drop.
std::shared_ptr<const void> share(nb::object object) {
  return {object.release().ptr(), [](void* held) {
            const nb::gil_scoped_acquire gil;
            Py_DECREF(static_cast<PyObject*>(held));
          }};
}

using DeviceArray = nb::ndarray<nb::ro, nb::device::cuda>;

/// The array that a DLPack capsule holds, in a GPU's memory.
struct HeldDeviceArray {
  DeviceArray array;

  /// Name of its element type, or what DLPack says of another one.
  std::string element_type() const {
    const nb::dlpack::dtype type = array.dtype();
    const bool is_real = type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float);
    const bool is_bfloat = type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat);
    const std::string bits = std::to_string(type.bits);
    if (type.lanes == 1 && (is_real || is_bfloat)) return (is_real ? "float" : "bfloat") + bits;
    return "DLPack's type " + std::to_string(type.code) + " of " + bits + " bits";
  }
};

template <class Array>
void set_shape(ArrayView& view, const Array& values, const nb::object& owner) {
  for (std::size_t i = 0; i < values.ndim(); ++i) view.shape.push_back(static_cast<Index>(values.shape(i)));
  view.data = static_cast<const std::byte*>(values.data());
  view.owner = share(owner);
  require(static_cast<Index>(values.itemsize()) == size_of(view.type), "an array is what its element type says");
}

/// The whole array in a GPU's memory, or of q these rows.
ArrayView device_view(const nb::object& held, ElementType type, LayerArray array, DumpInfo::Rows rows,
                      std::shared_ptr<const DeviceMemory> memory) {
  const DeviceArray& values = nb::cast<const HeldDeviceArray&>(held).array;
  ArrayView view{.type = type, .memory = std::move(memory)};
  set_shape(view, values, held);
  for (std::size_t i = 0; i < values.ndim(); ++i) view.strides.push_back(static_cast<Index>(values.stride(i)));
  if (array == LayerArray::q) {
    const StridedArray part = StridedArray{type, view.shape, view.strides, view.data}.part(1, rows.first, rows.count());
    view.shape = part.shape;
    view.data = part.data;
  }
  return view;
}

/// Calls fetch(layer, name, first, last), which answers (contiguous array or HeldDeviceArray, name of its element
/// type).
ArraySource::Fetch fetch_through(nb::object fetch, std::shared_ptr<const DeviceMemory> memory) {
  const auto shared = share(std::move(fetch));
  return [shared, memory = std::move(memory)](Index layer, LayerArray array, DumpInfo::Rows rows) {
    const nb::gil_scoped_acquire gil;
    const nb::handle callable(static_cast<PyObject*>(const_cast<void*>(shared.get())));
    const auto answer = nb::cast<nb::tuple>(callable(layer, std::string(to_string(array)), rows.first, rows.last));
    const ElementType type = element_type(nb::cast<std::string>(answer[1]));
    if (nb::isinstance<HeldDeviceArray>(answer[0])) return device_view(answer[0], type, array, rows, memory);
    ArrayView view{.type = type};
    set_shape(view, nb::cast<nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>>(answer[0]), answer[0]);
    return view;
  };
}

/// Where the arrays of `device` are, once what `stream` was given has run; nothing for the host, -1.
std::shared_ptr<const DeviceMemory> memory_of(int device, std::uintptr_t stream) {
  if (device < 0) return nullptr;
#ifdef LAPROX_CUDA
  return make_cuda_memory(device, reinterpret_cast<void*>(stream));
#else
  (void)stream;
  throw Bug("a laprox without its CUDA backend takes no arrays of a GPU");
#endif
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
                                         nb::object hash, int device, std::uintptr_t stream) {
  DumpInfo dump;
  dump.path = get<std::string>(info, "name");
  dump.model = get<std::string>(info, "model");
  dump.context_length = get<Index>(info, "context_length");
  dump.tokens = get<Index>(info, "tokens");
  dump.query_positions = get<std::vector<Index>>(info, "query_positions");
  dump.output_positions = get<std::vector<Index>>(info, "output_positions");
  for (const nb::handle layer : layers) dump.layers.push_back(summary_of(nb::cast<nb::dict>(layer)));
  return std::make_shared<PythonSource>(std::move(dump), fetch_through(std::move(fetch), memory_of(device, stream)),
                                        std::move(hash));
}

}  // namespace

ElementType element_type(const std::string& name) {
  for (ElementType type : {ElementType::float16, ElementType::bfloat16, ElementType::float32, ElementType::float64}) {
    if (to_string(type) == name) return type;
  }
  throw Bug("the package passes known element types, not " + name);
}

void add_source(nb::module_& module) {
  nb::class_<HeldDeviceArray>(module, "DeviceArray",
                              "An array in a GPU's memory, from a DLPack capsule, which it keeps alive.")
      .def(
          "__init__", [](HeldDeviceArray* self, DeviceArray array) { new (self) HeldDeviceArray{std::move(array)}; },
          nb::arg("capsule"))
      .def_prop_ro("element_type", &HeldDeviceArray::element_type)
      .def_prop_ro("device", [](const HeldDeviceArray& held) { return held.array.device_id(); })
      .def_prop_ro("data",
                   [](const HeldDeviceArray& held) { return reinterpret_cast<std::uintptr_t>(held.array.data()); })
      .def_prop_ro("shape", [](const HeldDeviceArray& held) {
        std::vector<std::size_t> shape;
        for (std::size_t i = 0; i < held.array.ndim(); ++i) shape.push_back(held.array.shape(i));
        return nb::tuple(nb::cast(shape));
      });
  nb::class_<LayerSource>(module, "Source", "Layers that are read one at a time.");
  module.def(
      "make_source", &make_source, nb::arg("info"), nb::arg("layers"), nb::arg("fetch"), nb::arg("hash"),
      nb::arg("device") = -1, nb::arg("stream") = 0,
      "A source from sizes (info, and a dict per layer) fetch(layer, name, first, last) -> (array, type), and hash() -> digest. "
      "Arrays of a GPU, `device`, are read behind what its `stream` was given before.");
}

}  // namespace laprox::python
