// Softmax cross-entropy of logits against class ids or probabilities.
//
// The target of a row is keep * t + share if probabilities t are given, else share plus keep at its class. The target
// of an ignored row is 0. p = exp(x - peak) / total.
#include "cuda/common.cuh"

enum Reduction { NONE, SUM, MEAN };

template <typename T> struct CrossEntropy {
  const T *logits, *target;   // (R, K), (R, K) or null
  const long long* classes;   // (R,) or null
  float *loss, *peak, *total; // (R,)
  T* out;                     // (R,) without a reduction, else (1,)
  float* divisor;             // (1,)
  const T* dloss;
  T *dlogits, *dtarget;       // dtarget may be null
  int rows, columns;
  long long ignored;
  float keep, share;
  int reduction;
};

// 0 log 0 = 0
DEVICE float term(float t, float log_p) { return t == 0 ? 0.f : -t * log_p; }

// The target of column c, without `share`.
template <typename T> DEVICE float given(const CrossEntropy<T>& a, int row, int c) {
  if (a.target) return a.keep * to_float(a.target[(long long)row * a.columns + c]);
  return a.classes[row] == c ? a.keep : 0.f;
}
template <typename T> DEVICE bool is_ignored(const CrossEntropy<T>& a, int row) {
  return a.classes && a.classes[row] == a.ignored;
}
template <typename T> DEVICE float upstream(const CrossEntropy<T>& a, int row) {
  return a.reduction == NONE ? to_float(a.dloss[row]) : to_float(a.dloss[0]) / a.divisor[0];
}

// v1: one thread for each row. ---------------------------------------------------------------------------------------

template <typename T> __global__ void cross_entropy_forward_1(CrossEntropy<T> a) {
  int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= a.rows) return;
  const T* x = a.logits + (long long)row * a.columns;
  float peak = -INFINITY, total = 0, loss = 0;
  for (int c = 0; c < a.columns; c++) peak = larger(peak, to_float(x[c]));
  for (int c = 0; c < a.columns; c++) total += expf(to_float(x[c]) - peak);
  if (!is_ignored(a, row))
    for (int c = 0; c < a.columns; c++) loss += term(given(a, row, c) + a.share, to_float(x[c]) - peak - logf(total));
  a.peak[row] = peak, a.total[row] = total, a.loss[row] = loss;
  if (a.reduction == NONE) a.out[row] = from_float<T>(loss);
}

template <typename T> __global__ void cross_entropy_backward_1(CrossEntropy<T> a) {
  int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= a.rows) return;
  const T* x = a.logits + (long long)row * a.columns;
  float d = upstream(a, row), peak = a.peak[row], total = a.total[row], sum = 0;
  bool ignored = is_ignored(a, row);
  if (!ignored)
    for (int c = 0; c < a.columns; c++) sum += given(a, row, c) + a.share;
  for (int c = 0; c < a.columns; c++) {
    long long at = (long long)row * a.columns + c;
    float t = ignored ? 0.f : given(a, row, c) + a.share;
    // loss = -sum(t * log p)
    a.dlogits[at] = from_float<T>(d * (expf(to_float(x[c]) - peak) / total * sum - t));
    if (a.dtarget) a.dtarget[at] = from_float<T>(-d * a.keep * (to_float(x[c]) - peak - logf(total)));
  }
}

// v2: one warp for each row; neighbouring lanes read neighbouring columns. -------------------------------------------

DEVICE float warp_larger(float v) {
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) v = larger(v, __shfl_xor_sync(ALL_LANES, v, step));
  return v;
}

template <typename T> __global__ void cross_entropy_forward_2(CrossEntropy<T> a) {
  int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= a.rows) return;
  const T* x = a.logits + (long long)row * a.columns;
  float peak = -INFINITY, total = 0, loss = 0;
  for (int c = lane; c < a.columns; c += WARP) peak = larger(peak, to_float(x[c]));
  peak = warp_larger(peak);
  for (int c = lane; c < a.columns; c += WARP) total += expf(to_float(x[c]) - peak);
  total = warp_sum(total);
  float log_total = logf(total);
  if (!is_ignored(a, row))
    for (int c = lane; c < a.columns; c += WARP)
      loss += term(given(a, row, c) + a.share, to_float(x[c]) - peak - log_total);
  loss = warp_sum(loss);
  if (lane) return;
  a.peak[row] = peak, a.total[row] = total, a.loss[row] = loss;
  if (a.reduction == NONE) a.out[row] = from_float<T>(loss);
}

template <typename T> __global__ void cross_entropy_backward_2(CrossEntropy<T> a) {
  int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= a.rows) return;
  const T* x = a.logits + (long long)row * a.columns;
  float d = upstream(a, row), peak = a.peak[row], total = a.total[row], sum = 0;
  bool ignored = is_ignored(a, row);
  if (!ignored) {
    for (int c = lane; c < a.columns; c += WARP) sum += given(a, row, c) + a.share;
    sum = warp_sum(sum);
  }
  float log_total = logf(total);
  for (int c = lane; c < a.columns; c += WARP) {
    long long at = (long long)row * a.columns + c;
    float t = ignored ? 0.f : given(a, row, c) + a.share;
    // loss = -sum(t * log p)
    a.dlogits[at] = from_float<T>(d * (expf(to_float(x[c]) - peak) / total * sum - t));
    if (a.dtarget) a.dtarget[at] = from_float<T>(-d * a.keep * (to_float(x[c]) - peak - log_total));
  }
}

// Both versions: one block computes the sum or mean of the loss, in an order that depends on R only. -----------------

template <typename T> __global__ void cross_entropy_reduce(CrossEntropy<T> a) {
  DYNAMIC_SHARED(memory);
  float sum = 0, count = 0, *scratch = reinterpret_cast<float*>(memory);
  for (int row = threadIdx.x; row < a.rows; row += blockDim.x) {
    sum += a.loss[row];
    count += !is_ignored(a, row);
  }
  sum = block_sum(sum, scratch);
  count = block_sum(count, scratch);
  if (threadIdx.x) return;
  float divisor = a.reduction == MEAN && count > 1 ? count : 1.f;
  a.divisor[0] = divisor;
  a.out[0] = from_float<T>(sum / divisor);
}
