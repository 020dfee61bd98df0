// GELU of each element, exact or by the tanh formula: one thread for each V neighbouring elements.
#include "bias_gelu/formula.cuh"

template <typename T, int V, bool TANH> __global__ void gelu_forward(const T* x, T* y, long long size) {
  long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i >= size) return;
  float value[V];
  load(value, x + i);
#pragma unroll
  for (int j = 0; j < V; j++) value[j] = gelu<TANH>(value[j]);
  store(y + i, value);
}

template <typename T, int V, bool TANH> __global__ void gelu_backward(const T* dy, const T* x, T* dx, long long size) {
  long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i >= size) return;
  float value[V], d[V];
  load(value, x + i);
  load(d, dy + i);
#pragma unroll
  for (int j = 0; j < V; j++) d[j] *= gelu_slope<TANH>(value[j]);
  store(dx + i, d);
}
