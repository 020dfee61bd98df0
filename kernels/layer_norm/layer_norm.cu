// Layer norm of rows, or of the sum of two. T is the dtype of x and of the sum, B that of the branch added to it, and Y that
// of the result, which a matrix product takes: where T is float, B and Y may have 16 bits.
#include "cuda/sums.cuh"

template <typename T, typename B, typename Y> struct Forward {
  const T* x;              // (R, C)
  const B* residual;       // (R, C) or null
  const T *weight, *bias;  // (C,)
  T* total;                // (R, C); x + residual is written if there is a residual
  Y* y;                    // (R, C)
  float *mean, *rstd;                     // (R,)
  int rows, columns;
  float eps;
};
template <typename T, typename B, typename Y> struct Backward {
  const Y* dy;
  const T *dtotal, *x, *weight;  // dtotal (R, C) or null: the gradient of the sum from its other use
  const float *mean, *rstd;
  T* dx;
  B* dbranch;  // (R, C) or null: dx, rounded
  T *dweight, *dbias;
  float* parts;  // (G, 2, C)
  int rows, columns;
};

// v1: one block for each row, which it reads three times. ------------------------------------------------------------

template <typename T, typename B, typename Y> __global__ void layer_norm_forward_1(Forward<T, B, Y> a) {
  DYNAMIC_SHARED(memory);
  float* scratch = reinterpret_cast<float*>(memory);  // (32)
  long long start = (long long)blockIdx.x * a.columns;
  const T* x = a.x + start;
  if (a.residual) {
    for (int c = threadIdx.x; c < a.columns; c += blockDim.x)
      a.total[start + c] = from_float<T>(to_float(x[c]) + to_float(a.residual[start + c]));
    x = a.total + start;  // each thread reads the elements that it wrote
  }
  float sum = 0, squares = 0;
  for (int c = threadIdx.x; c < a.columns; c += blockDim.x) sum += to_float(x[c]);
  float mean = block_sum(sum, scratch) / a.columns;
  for (int c = threadIdx.x; c < a.columns; c += blockDim.x) {
    float d = to_float(x[c]) - mean;
    squares += d * d;
  }
  float rstd = rsqrtf(block_sum(squares, scratch) / a.columns + a.eps);
  for (int c = threadIdx.x; c < a.columns; c += blockDim.x)
    a.y[start + c] = from_float<Y>((to_float(x[c]) - mean) * rstd * to_float(a.weight[c]) + to_float(a.bias[c]));
  if (threadIdx.x == 0) a.mean[blockIdx.x] = mean, a.rstd[blockIdx.x] = rstd;
}

template <typename T, typename B, typename Y> __global__ void layer_norm_dx_1(Backward<T, B, Y> a) {
  DYNAMIC_SHARED(memory);
  float* scratch = reinterpret_cast<float*>(memory);
  long long start = (long long)blockIdx.x * a.columns;
  float mean = a.mean[blockIdx.x], rstd = a.rstd[blockIdx.x], sum_g = 0, sum_gx = 0;
  for (int c = threadIdx.x; c < a.columns; c += blockDim.x) {
    float g = to_float(a.dy[start + c]) * to_float(a.weight[c]);
    sum_g += g;
    sum_gx += g * (to_float(a.x[start + c]) - mean) * rstd;
  }
  float mean_g = block_sum(sum_g, scratch) / a.columns, mean_gx = block_sum(sum_gx, scratch) / a.columns;
  for (int c = threadIdx.x; c < a.columns; c += blockDim.x) {
    float g = to_float(a.dy[start + c]) * to_float(a.weight[c]), xhat = (to_float(a.x[start + c]) - mean) * rstd;
    // xhat = (x - mean) * rstd, and mean and rstd both depend on x
    float dx = rstd * (g - mean_g - xhat * mean_gx);
    if (a.dtotal) dx += to_float(a.dtotal[start + c]);
    a.dx[start + c] = from_float<T>(dx);
    if (a.dbranch) a.dbranch[start + c] = from_float<B>(dx);
  }
}

// One thread for each column.
template <typename T, typename B, typename Y> __global__ void layer_norm_dweight_1(Backward<T, B, Y> a) {
  int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= a.columns) return;
  float dweight = 0, dbias = 0;
  for (int row = 0; row < a.rows; row++) {
    float dy = to_float(a.dy[(long long)row * a.columns + c]);
    // y = xhat * weight + bias
    dweight += dy * (to_float(a.x[(long long)row * a.columns + c]) - a.mean[row]) * a.rstd[row];
    dbias += dy;
  }
  a.dweight[c] = from_float<T>(dweight);
  a.dbias[c] = from_float<T>(dbias);
}

// v2: one warp for each row, which is in registers: P runs of V neighbouring columns in each lane. -------------------

template <typename T, typename B, typename Y, int V, int P>
__global__ void __launch_bounds__(128, 2) layer_norm_forward_2(Forward<T, B, Y> a) {
  int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= a.rows) return;
  long long start = (long long)row * a.columns;
  float x[P][V], sum = 0, squares = 0;
#pragma unroll
  for (int p = 0; p < P; p++) {
    int c = (p * WARP + lane) * V;
#pragma unroll
    for (int i = 0; i < V; i++) x[p][i] = 0;
    if (c >= a.columns) continue;
    load(x[p], a.x + start + c);
    if (a.residual) {
      float other[V];
      load(other, a.residual + start + c);
#pragma unroll
      for (int i = 0; i < V; i++) x[p][i] = to_float(from_float<T>(x[p][i] + other[i]));  // rounded as in memory
      store(a.total + start + c, x[p]);
    }
#pragma unroll
    for (int i = 0; i < V; i++) sum += x[p][i];
  }
  float mean = warp_sum(sum) / a.columns;
#pragma unroll
  for (int p = 0; p < P; p++) {
    if ((p * WARP + lane) * V >= a.columns) continue;
#pragma unroll
    for (int i = 0; i < V; i++) squares += (x[p][i] - mean) * (x[p][i] - mean);
  }
  float rstd = rsqrtf(warp_sum(squares) / a.columns + a.eps);
#pragma unroll
  for (int p = 0; p < P; p++) {
    int c = (p * WARP + lane) * V;
    if (c >= a.columns) continue;
    float weight[V], bias[V];
    load(weight, a.weight + c);
    load(bias, a.bias + c);
#pragma unroll
    for (int i = 0; i < V; i++) x[p][i] = (x[p][i] - mean) * rstd * weight[i] + bias[i];
    store(a.y + start + c, x[p]);
  }
  if (lane == 0) a.mean[row] = mean, a.rstd[row] = rstd;
}

// Each warp takes some of the rows and keeps its part of dweight and dbias in registers; parts[g] are the sums of
// block g.
// Up to 24 elements of a lane, four blocks of it share a multiprocessor, so that all 512 blocks run at the same time on a
// GPU with 128 multiprocessors or more.
template <typename T, typename B, typename Y, int V, int P>
__global__ void __launch_bounds__(128, P * V <= 24 ? 4 : 2) layer_norm_backward_2(Backward<T, B, Y> a) {
  DYNAMIC_SHARED(memory);
  int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  float dweight[P][V] = {}, dbias[P][V] = {};
  for (int row = blockIdx.x * warps + warp; row < a.rows; row += gridDim.x * warps) {
    long long start = (long long)row * a.columns;
    float mean = a.mean[row], rstd = a.rstd[row], g[P][V], xhat[P][V], sum_g = 0, sum_gx = 0;
#pragma unroll
    for (int p = 0; p < P; p++) {
      int c = (p * WARP + lane) * V;
      if (c >= a.columns) continue;
      float weight[V];
      load(g[p], a.dy + start + c);
      load(xhat[p], a.x + start + c);
      load(weight, a.weight + c);
#pragma unroll
      for (int i = 0; i < V; i++) {
        float dy = g[p][i];
        xhat[p][i] = (xhat[p][i] - mean) * rstd;
        // y = xhat * weight + bias
        dweight[p][i] += dy * xhat[p][i];
        dbias[p][i] += dy;
        g[p][i] = dy * weight[i];
        sum_g += g[p][i];
        sum_gx += g[p][i] * xhat[p][i];
      }
    }
    float mean_g = warp_sum(sum_g) / a.columns, mean_gx = warp_sum(sum_gx) / a.columns;
#pragma unroll
    for (int p = 0; p < P; p++) {
      int c = (p * WARP + lane) * V;
      if (c >= a.columns) continue;
      float before[V] = {};
      if (a.dtotal) load(before, a.dtotal + start + c);
      // xhat = (x - mean) * rstd, and mean and rstd both depend on x
#pragma unroll
      for (int i = 0; i < V; i++) g[p][i] = before[i] + rstd * (g[p][i] - mean_g - xhat[p][i] * mean_gx);
      store(a.dx + start + c, g[p]);
      if (a.dbranch) store(a.dbranch + start + c, g[p]);
    }
  }
#pragma unroll
  for (int p = 0; p < P; p++) {
    int c = (p * WARP + lane) * V;
    float* target = a.parts + (long long)blockIdx.x * 2 * a.columns + c;
    add_warps(dweight[p], reinterpret_cast<float*>(memory));
    if (warp == 0 && c < a.columns)
#pragma unroll
      for (int i = 0; i < V; i++) target[i] = dweight[p][i];
    add_warps(dbias[p], reinterpret_cast<float*>(memory));
    if (warp == 0 && c < a.columns)
#pragma unroll
      for (int i = 0; i < V; i++) target[a.columns + i] = dbias[p][i];
  }
}
