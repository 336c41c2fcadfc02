#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/tensor_core.cuh"
#include "backends/cuda/walk.h"

namespace laprox::cuda {

namespace {

constexpr int kRows = 64, kValues = 64, kTokens = 16, kThreads = 256;

/// Softmax numerators of 64 query rows over one piece's tokens. Block (piece, tile of rows, tile of value elements), a
/// thread has 4 x 4 of them; float32 without tensor cores, because errors are formed from these sums.
template <class T>
__global__ void __launch_bounds__(kThreads)
    piece_sums_kernel(const float* logits, int stride, const int* order, const int* bounds, const T* values,
                      int value_stride, int value_size, PieceSums sums) {
  __shared__ float maxima[kThreads / kRows][kRows];
  __shared__ float weight_tile[kTokens][kRows + 4];
  __shared__ float value_tile[kTokens][kValues];
  const int piece = static_cast<int>(blockIdx.x), first_row = static_cast<int>(blockIdx.y) * kRows;
  const int first_value = static_cast<int>(blockIdx.z) * kValues, thread = static_cast<int>(threadIdx.x);
  const int begin = bounds[piece], end = bounds[piece + 1];
  const auto token = [order](int i) { return order ? order[i] : i; };

  const int own_row = first_row + thread % kRows;
  float maximum = -INFINITY;
  for (int i = begin + thread / kRows; i < end && own_row < stride; i += kThreads / kRows) {
    maximum = fmaxf(maximum, logits[static_cast<size_t>(token(i)) * stride + own_row]);
  }
  maxima[thread / kRows][thread % kRows] = maximum;
  __syncthreads();
  for (const auto& other : maxima) maximum = fmaxf(maximum, other[thread % kRows]);
  const float shift = maximum == -INFINITY ? 0 : maximum;  // a row that sees none of the tokens: all weights are 0

  const int tx = thread % 16, ty = thread / 16;
  float y[4][4] = {}, row_sum[4] = {};
  for (int first = begin; first < end; first += kTokens) {
    __syncthreads();
    for (int i = thread / kRows; i < kTokens; i += kThreads / kRows) {
      weight_tile[i][thread % kRows] =
          first + i < end && own_row < stride
              ? expf(logits[static_cast<size_t>(token(first + i)) * stride + own_row] - shift)
              : 0.0F;
    }
    for (int i = thread; i < kTokens * kValues; i += kThreads) {
      const int at = first + i / kValues, value = first_value + i % kValues;
      value_tile[i / kValues][i % kValues] =
          at < end && value < value_size ? to_float(values[static_cast<size_t>(token(at)) * value_stride + value])
                                         : 0.0F;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const float4 a = *reinterpret_cast<const float4*>(&weight_tile[i][4 * ty]);
      const float4 b = *reinterpret_cast<const float4*>(&value_tile[i][4 * tx]);
      const float weight[4] = {a.x, a.y, a.z, a.w}, value[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        row_sum[r] += weight[r];
#pragma unroll
        for (int c = 0; c < 4; ++c) y[r][c] += weight[r] * value[c];
      }
    }
  }
  if (thread < kRows && blockIdx.z == 0 && own_row < stride) {
    sums.maximum[static_cast<size_t>(piece) * stride + own_row] = maximum;
  }
  for (int r = 0; r < 4; ++r) {
    const int row = first_row + 4 * ty + r;
    if (row >= stride) continue;
    if (tx == 0 && blockIdx.z == 0) sums.sum[static_cast<size_t>(piece) * stride + row] = row_sum[r];
    for (int c = 0; c < 4; ++c) {
      const int value = first_value + 4 * tx + c;
      if (value < value_size) sums.values[(static_cast<size_t>(piece) * stride + row) * value_size + value] = y[r][c];
    }
  }
}

/// One query row's running sums while pieces join, of one element of the values.
struct Running {
  double maximum = -INFINITY, sum = 0;
  float value = 0;

  __device__ void join(double other_maximum, double other_sum, float other_value) {
    const double largest = fmax(maximum, other_maximum);
    if (largest == -INFINITY) return;
    const double mine = exp(maximum - largest), theirs = exp(other_maximum - largest);
    sum = sum * mine + other_sum * theirs;
    value = static_cast<float>(mine) * value + static_cast<float>(theirs) * other_value;
    maximum = largest;
  }
  __device__ void join(const PieceSums& pieces, int piece, int stride, int row, int value_size, int element) {
    const size_t at = static_cast<size_t>(piece) * stride + row;
    join(pieces.maximum[at], pieces.sum[at], pieces.values[at * value_size + element]);
  }
};

/// The share of `part` in the sum of both denominators.
__device__ double share(const Running& part, const Running& rest) {
  if (part.sum == 0) return 0;
  if (rest.sum == 0) return 1;
  const double largest = fmax(part.maximum, rest.maximum);
  const double mine = part.sum * exp(part.maximum - largest);
  return mine / (mine + rest.sum * exp(rest.maximum - largest));
}

/// Which query a row of a table is.
struct TableRow {
  int head, query;  ///< of the group; counted from the range's first one
  __device__ TableRow(const TableShape& table, int row)
      : head(row / table.resident % table.group),
        query(row / table.resident / table.group * table.resident + row % table.resident) {}
};

__device__ Running sink_of(const TableShape& table, const TableRow& row) {
  return table.sinks ? Running{table.sinks[row.head], 1.0, 0.0F} : Running{};
}

__global__ void exact_outputs_kernel(TableShape table, PieceSums pieces, int count, OutputRows out) {
  const int row_index = static_cast<int>(blockIdx.x), element = static_cast<int>(threadIdx.x);
  const TableRow row(table, row_index);
  if (row.query >= table.queries || element >= table.value_size) return;
  Running all = sink_of(table, row);
  for (int piece = 0; piece < count; ++piece) {
    all.join(pieces, piece, table.rows, row_index, table.value_size, element);
  }
  out.first[row.query * out.query_stride + row.head * table.value_size + element] =
      static_cast<float>(1 / all.sum) * all.value;
}

/// Block per query row, thread per element of the values. The evicted sums of every cell are formed from the back, the
/// kept ones from the front; see walk.h.
__global__ void deltas_kernel(TableShape table, PieceSums pieces, WalkRoute route, bool truncated, OutputRows out,
                              ShareRows shares) {
  extern __shared__ double2 evicted_scalars[];
  const int row_index = static_cast<int>(blockIdx.x), element = static_cast<int>(threadIdx.x);
  const TableRow row(table, row_index);
  if (row.query >= table.queries) return;  // the whole block
  const bool real = element < table.value_size;
  float* target = out.first + row.query * out.query_stride + row.head * table.value_size + element;
  const int value = real ? element : 0;

  Running evicted;
  for (int cell = route.cells; cell-- > 0;) {
    for (int piece = route.segments[cell + 1]; piece < route.segments[cell + 2]; ++piece) {
      evicted.join(pieces, piece, table.rows, row_index, table.value_size, value);
    }
    if (element == 0) evicted_scalars[cell] = make_double2(evicted.maximum, evicted.sum);
    if (real) target[route.slots[cell] * out.cell_stride] = evicted.value;
  }
  __syncthreads();
  Running kept = sink_of(table, row);
  for (int cell = 0; cell < route.cells; ++cell) {
    for (int piece = route.segments[cell]; piece < route.segments[cell + 1]; ++piece) {
      kept.join(pieces, piece, table.rows, row_index, table.value_size, value);
    }
    Running gone;
    gone.maximum = evicted_scalars[cell].x;
    gone.sum = evicted_scalars[cell].y;
    const double weight = share(gone, kept);
    const float of_kept = !truncated && kept.sum > 0 ? static_cast<float>(weight / kept.sum) : 0.0F;
    const float of_evicted = weight > 0 ? static_cast<float>(-weight / gone.sum) : 0.0F;
    float& delta = target[route.slots[cell] * out.cell_stride];
    if (real) {
      const double remaining = truncated ? share(kept, gone) : 1;
      const float factor = kept.sum > 0 ? static_cast<float>(remaining / kept.sum) : 0.0F;
      (out.kept + (target - out.first))[route.slots[cell] * out.cell_stride] = factor * kept.value;
      delta = of_evicted * delta + of_kept * kept.value;
    }
    if (element == 0) {
      shares.first[route.slots[cell] * shares.cell_stride + row.head * shares.head_stride + row.query] = weight;
    }
  }
}

__global__ void gather_rows_kernel(const float* x, const int* rows, int width, float* gathered) {
  const float* from = x + static_cast<size_t>(rows[blockIdx.x]) * width;
  float* to = gathered + static_cast<size_t>(blockIdx.x) * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) to[i] = from[i];
}

/// Block (head, cell): squared norm of one query head's part of a cell over all queries.
__global__ void __launch_bounds__(kThreads)
    head_squares_kernel(const float* outputs, int queries, int width, int value_size, double* squares) {
  __shared__ double of_thread[kThreads];
  const float* first = outputs + static_cast<size_t>(blockIdx.y) * queries * width + blockIdx.x * value_size;
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < queries * value_size; i += kThreads) {
    const double x = first[static_cast<size_t>(i / value_size) * width + i % value_size];
    sum += x * x;
  }
  of_thread[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) of_thread[threadIdx.x] += of_thread[threadIdx.x + half];
  }
  if (threadIdx.x == 0) squares[static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x] = of_thread[0];
}

int value_threads(const TableShape& table) { return (table.value_size + 31) / 32 * 32; }

}  // namespace

void piece_sums(const Layer& layer, int kv_head, const TableShape& table, const float* logits, const int* order,
                const int* bounds, int pieces, PieceSums sums, cudaStream_t stream) {
  if (pieces == 0) return;
  const dim3 grid(pieces, (table.rows + kRows - 1) / kRows, (table.value_size + kValues - 1) / kValues);
  for_element(layer.element, [&]<class T>() {
    const T* values = static_cast<const T*>(layer.v) + static_cast<size_t>(kv_head) * layer.tokens * layer.value_stride;
    piece_sums_kernel<T><<<grid, kThreads, 0, stream>>>(logits, table.rows, order, bounds, values, layer.value_stride,
                                                        table.value_size, sums);
  });
  check_launch("sums over pieces");
}

void exact_outputs(const TableShape& table, PieceSums sums, int pieces, OutputRows out, cudaStream_t stream) {
  exact_outputs_kernel<<<table.rows, value_threads(table), 0, stream>>>(table, sums, pieces, out);
  check_launch("exact outputs");
}

void deltas(const TableShape& table, PieceSums sums, const WalkRoute& route, bool truncated, OutputRows out,
            ShareRows shares, cudaStream_t stream) {
  if (route.cells == 0) return;
  const int shared_bytes = route.cells * static_cast<int>(sizeof(double2));
  allow_shared_memory(deltas_kernel, shared_bytes);
  deltas_kernel<<<table.rows, value_threads(table), shared_bytes, stream>>>(table, sums, route, truncated, out, shares);
  check_launch("differences of outputs");
}

void gather_rows(const float* x, const int* rows, int count, int width, float* gathered, cudaStream_t stream) {
  if (count == 0) return;
  gather_rows_kernel<<<count, kThreads, 0, stream>>>(x, rows, width, gathered);
  check_launch("rows of kept outputs");
}

void head_squares(const Layer& layer, const float* outputs, int cells, int queries, double* squares,
                  cudaStream_t stream) {
  head_squares_kernel<<<dim3(layer.query_heads, cells), kThreads, 0, stream>>>(
      outputs, queries, layer.query_heads * layer.value_size, layer.value_size, squares);
  check_launch("norms of head outputs");
}

}  // namespace laprox::cuda
