#include "backends/cuda/layer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>

#include "backends/cuda/memory.h"
#include "backends/softcap.h"
#include "base/parallel.h"
#include "laprox/error.h"
#include "laprox/layer.h"

namespace laprox::cuda {

namespace {

/// What a thread copies at a time.
constexpr std::size_t kCopiedBytes = std::size_t{1} << 20;

/// Two pinned buffers that take turns: one is filled by the CPU while the other one is copied to the device.
class Staging {
 public:
  Staging(int threads, cudaStream_t stream) : threads_(threads), stream_(stream) {}
  ~Staging() {
    if (halves_[0].memory) cudaStreamSynchronize(stream_);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// Copies `rows` rows of `row_bytes` to the device, each followed by zeros up to `stride_bytes`.
  void copy(std::byte* target, const std::byte* source, std::size_t rows, std::size_t row_bytes,
            std::size_t stride_bytes) {
    const std::size_t at_once = std::max<std::size_t>(1, PinnedPiece::kBytes / stride_bytes);
    for (std::size_t first = 0; first < rows; first += at_once) {
      const std::size_t count = std::min(at_once, rows - first);
      Half& half = halves_[next_];
      next_ = 1 - next_;
      if (!half.memory) half.memory.emplace();
      half.is_free.wait();
      fill(half.memory->data(), source + first * row_bytes, count, row_bytes, stride_bytes);
      check(cudaMemcpyAsync(target + first * stride_bytes, half.memory->data(), count * stride_bytes,
                            cudaMemcpyHostToDevice, stream_),
            "copying a layer to the device");
      half.is_free.record(stream_);
    }
  }

 private:
  struct Half {
    std::optional<PinnedPiece> memory;
    Event is_free;
  };

  /// One core copies slower than the device takes it.
  void fill(std::byte* target, const std::byte* source, std::size_t rows, std::size_t row_bytes,
            std::size_t stride_bytes) const {
    const std::size_t at_once = std::max<std::size_t>(1, kCopiedBytes / stride_bytes);
    parallel_for(threads_, static_cast<Index>((rows + at_once - 1) / at_once), [&](Index task) {
      const std::size_t first = static_cast<std::size_t>(task) * at_once;
      fill_rows(target + first * stride_bytes, source + first * row_bytes, std::min(at_once, rows - first), row_bytes,
                stride_bytes);
    });
  }

  static void fill_rows(std::byte* target, const std::byte* source, std::size_t rows, std::size_t row_bytes,
                        std::size_t stride_bytes) {
    if (row_bytes == stride_bytes) {
      std::memcpy(target, source, rows * row_bytes);
      return;
    }
    for (std::size_t row = 0; row < rows; ++row) {
      std::memcpy(target + row * stride_bytes, source + row * row_bytes, row_bytes);
      std::memset(target + row * stride_bytes + row_bytes, 0, stride_bytes - row_bytes);
    }
  }

  int threads_;
  cudaStream_t stream_;
  Half halves_[2];
  std::size_t next_ = 0;
};

Element element_of(ElementType type) {
  if (type == ElementType::float16) return Element::float16;
  if (type == ElementType::bfloat16) return Element::bfloat16;
  require(type == ElementType::float32, "the CUDA backend takes float16, bfloat16 and float32");
  return Element::float32;
}

int checked_size(Index size, const char* what, Index layer) {
  const int padded = size <= 256 ? padded_size(static_cast<int>(size)) : 0;
  if (padded > 0) return padded;
  throw BackendError(fmt::format("layer {}: the CUDA backend has kernels for {} up to 256, found {}; use --backend cpu",
                                 layer, what, size));
}

/// Whether kernels read rows of `width` elements from where this array lies.
bool has_rows(const StridedArray& array, int stride) {
  return array.is_dense() && array.shape.back() == stride && reinterpret_cast<std::uintptr_t>(array.data) % 16 == 0;
}

/// The rows of an array on the device, each `stride` elements long: where they are, or packed into `buffer`.
const void* rows_on_device(const Tensor& tensor, int stride, DeviceBuffer<std::byte>& buffer, cudaStream_t stream) {
  const StridedArray& array = tensor.on_device();
  join(*tensor.memory(), stream);
  if (has_rows(array, stride)) return array.data;
  const Index rows = array.size() / array.shape.back();
  buffer = DeviceBuffer<std::byte>(static_cast<std::size_t>(rows * stride * size_of(array.type)));
  pack_rows(array, stride, buffer.data(), stream);
  return buffer.data();
}

}  // namespace

int padded_size(int size) { return size <= 64 ? 64 : size <= 128 ? 128 : size <= 256 ? 256 : 0; }

DeviceLayer::DeviceLayer(const LayerTensors& layer, int threads, cudaStream_t stream) {
  const LayerGeometry& g = layer.geometry;
  view_.element = element_of(layer.q.type());
  view_.query_heads = static_cast<int>(g.query_heads);
  view_.kv_heads = static_cast<int>(g.kv_heads);
  view_.group = static_cast<int>(g.group());
  view_.queries = static_cast<int>(layer.queries());
  view_.tokens = static_cast<int>(layer.tokens);
  view_.context = static_cast<int>(layer.context_length);
  view_.value_size = static_cast<int>(g.value_size);
  view_.model_size = static_cast<int>(g.model_size);
  view_.head_stride = checked_size(g.head_size, "head sizes", layer.layer);
  view_.value_stride = checked_size(g.value_size, "value sizes", layer.layer);
  view_.model_stride = static_cast<int>((g.model_size + 31) / 32 * 32);
  view_.scale = static_cast<float>(layer.attention.scale);
  view_.softcap = softcap_in_float32(layer.attention.softcap);
  view_.sliding_window = static_cast<int>(std::min(layer.attention.sliding_window, layer.tokens));

  Staging staging(threads, stream);
  const std::size_t element = static_cast<std::size_t>(size_of(layer.q.type()));
  const auto copy = [&](DeviceBuffer<std::byte>& buffer, const Tensor& tensor, int stride) -> const void* {
    require(tensor.type() == layer.q.type(), "the tensors of a layer share one element type");
    if (tensor.memory()) return rows_on_device(tensor, stride, buffer, stream);
    const std::size_t width = static_cast<std::size_t>(tensor.shape().back());
    const std::size_t rows = width > 0 ? static_cast<std::size_t>(tensor.size()) / width : 0;
    const std::size_t stride_bytes = static_cast<std::size_t>(stride) * element;
    buffer = DeviceBuffer<std::byte>(rows * stride_bytes);
    staging.copy(buffer.data(), tensor.raw(), rows, width * element, stride_bytes);
    return buffer.data();
  };
  view_.q = copy(q_, layer.q, view_.head_stride);
  view_.k = copy(k_, layer.k, view_.head_stride);
  view_.v = copy(v_, layer.v, view_.value_stride);
  view_.w_o = copy(w_o_, layer.w_o, view_.model_stride);

  const std::vector<int> positions(layer.query_positions.begin(), layer.query_positions.end());
  positions_ = DeviceBuffer<int>(positions.size());
  upload(positions_.data(), positions.data(), positions.size(), stream);
  view_.positions = positions_.data();
  const std::vector<float> sinks(layer.attention.sinks.begin(), layer.attention.sinks.end());
  sinks_ = DeviceBuffer<float>(sinks.size());
  upload(sinks_.data(), sinks.data(), sinks.size(), stream);
  view_.sinks = sinks_.data();
}

}  // namespace laprox::cuda
