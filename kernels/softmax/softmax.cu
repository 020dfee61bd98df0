// Softmax of rows (R, C).
#include "cuda/common.cuh"

// v1: one block for each row, which it reads three times. ------------------------------------------------------------

template <typename T> __global__ void softmax_forward_1(const T* x, T* y, int rows, int columns) {
  DYNAMIC_SHARED(memory);
  float *scratch = reinterpret_cast<float*>(memory), top = -INFINITY, sum = 0;
  x += (long long)blockIdx.x * columns, y += (long long)blockIdx.x * columns;
  for (int c = threadIdx.x; c < columns; c += blockDim.x) top = larger(top, to_float(x[c]));
  top = block_max(top, scratch);
  for (int c = threadIdx.x; c < columns; c += blockDim.x) sum += expf(to_float(x[c]) - top);
  sum = block_sum(sum, scratch);
  for (int c = threadIdx.x; c < columns; c += blockDim.x) y[c] = from_float<T>(expf(to_float(x[c]) - top) / sum);
}

template <typename T> __global__ void softmax_backward_1(const T* dy, const T* y, T* dx, int rows, int columns) {
  DYNAMIC_SHARED(memory);
  long long start = (long long)blockIdx.x * columns;
  float sum = 0;
  for (int c = threadIdx.x; c < columns; c += blockDim.x) sum += to_float(dy[start + c]) * to_float(y[start + c]);
  sum = block_sum(sum, reinterpret_cast<float*>(memory));
  // dy_i / dx_j = y_i (delta_ij - y_j)
  for (int c = threadIdx.x; c < columns; c += blockDim.x)
    dx[start + c] = from_float<T>(to_float(y[start + c]) * (to_float(dy[start + c]) - sum));
}

// v2: one warp for each row, which is in registers: P runs of V neighbouring columns in each lane. -------------------

template <typename T, int V, int P>
__global__ void __launch_bounds__(128, 4) softmax_forward_2(const T* x, T* y, int rows, int columns) {
  int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= rows) return;
  long long start = (long long)row * columns;
  float e[P][V], top = -INFINITY, sum = 0;
#pragma unroll
  for (int p = 0; p < P; p++) {
    int c = (p * WARP + lane) * V;
    if (c >= columns) continue;
    load(e[p], x + start + c);
#pragma unroll
    for (int i = 0; i < V; i++) top = larger(top, e[p][i]);
  }
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) top = larger(top, __shfl_xor_sync(ALL_LANES, top, step));
#pragma unroll
  for (int p = 0; p < P; p++) {
    if ((p * WARP + lane) * V >= columns) continue;
#pragma unroll
    for (int i = 0; i < V; i++) e[p][i] = expf(e[p][i] - top), sum += e[p][i];
  }
  float share = 1 / warp_sum(sum);
#pragma unroll
  for (int p = 0; p < P; p++) {
    int c = (p * WARP + lane) * V;
    if (c >= columns) continue;
#pragma unroll
    for (int i = 0; i < V; i++) e[p][i] *= share;
    store(y + start + c, e[p]);
  }
}

template <typename T, int V, int P>
__global__ void __launch_bounds__(128, 4) softmax_backward_2(const T* dy, const T* y, T* dx, int rows, int columns) {
  int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= rows) return;
  long long start = (long long)row * columns;
  float d[P][V], out[P][V], sum = 0;
#pragma unroll
  for (int p = 0; p < P; p++) {
    int c = (p * WARP + lane) * V;
    if (c >= columns) continue;
    load(d[p], dy + start + c);
    load(out[p], y + start + c);
#pragma unroll
    for (int i = 0; i < V; i++) sum += d[p][i] * out[p][i];
  }
  sum = warp_sum(sum);
#pragma unroll
  for (int p = 0; p < P; p++) {
    int c = (p * WARP + lane) * V;
    if (c >= columns) continue;
#pragma unroll
    for (int i = 0; i < V; i++) d[p][i] = out[p][i] * (d[p][i] - sum);
    store(dx + start + c, d[p]);
  }
}
