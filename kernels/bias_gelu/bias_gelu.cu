// GELU of x + bias, exact or by the tanh formula.
#include "bias_gelu/formula.cuh"
#include "cuda/sums.cuh"

// v1: one thread for each element; for dbias, one for each column. ---------------------------------------------------

template <typename T, bool TANH>
__global__ void gelu_forward_1(const T* x, const T* bias, T* y, int rows, int columns) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < (long long)rows * columns) y[i] = from_float<T>(gelu<TANH>(to_float(x[i]) + to_float(bias[i % columns])));
}

template <typename T, bool TANH>
__global__ void gelu_backward_1(const T* dy, const T* x, const T* bias, T* dx, T* dbias, int rows, int columns) {
  int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= columns) return;
  float sum = 0, b = to_float(bias[c]);
  for (long long i = c; i < (long long)rows * columns; i += columns) {
    float d = to_float(dy[i]) * gelu_slope<TANH>(to_float(x[i]) + b);
    dx[i] = from_float<T>(d);
    sum += d;
  }
  dbias[c] = from_float<T>(sum);
}

// v2: 16 bytes at a time; warps go down the rows, each lane with its run of columns. ---------------------------------

template <typename T, int V, bool TANH>
__global__ void __launch_bounds__(128, 4) gelu_forward_2(const T* x, const T* bias, T* y, int rows, int columns) {
  int c = (blockIdx.x * WARP + threadIdx.x % WARP) * V, warps = blockDim.x / WARP;
  if (c >= columns) return;
  float b[V];
  load(b, bias + c);
  for (int row = blockIdx.y * warps + threadIdx.x / WARP; row < rows; row += gridDim.y * warps) {
    long long at = (long long)row * columns + c;
    float h[V];
    load(h, x + at);
#pragma unroll
    for (int i = 0; i < V; i++) h[i] = gelu<TANH>(h[i] + b[i]);
    store(y + at, h);
  }
}

template <typename T, int V, bool TANH>
__global__ void __launch_bounds__(128, 4)
    gelu_backward_2(const T* dy, const T* x, const T* bias, T* dx, float* parts, int rows, int columns) {
  DYNAMIC_SHARED(memory);
  int c = (blockIdx.x * WARP + threadIdx.x % WARP) * V, warps = blockDim.x / WARP, warp = threadIdx.x / WARP;
  float b[V] = {}, sum[V] = {};
  if (c < columns) load(b, bias + c);
  for (int row = blockIdx.y * warps + warp; row < rows && c < columns; row += gridDim.y * warps) {
    long long at = (long long)row * columns + c;
    float h[V], d[V];
    load(h, x + at);
    load(d, dy + at);
#pragma unroll
    for (int i = 0; i < V; i++) {
      d[i] *= gelu_slope<TANH>(h[i] + b[i]);
      sum[i] += d[i];
    }
    store(dx + at, d);
  }
  add_warps(sum, reinterpret_cast<float*>(memory));
  if (warp == 0 && c < columns)
#pragma unroll
    for (int i = 0; i < V; i++) parts[(long long)blockIdx.y * columns + c + i] = sum[i];
}
