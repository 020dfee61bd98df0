// y = x m with the factors m of dropout, for each element.
#include "cuda/common.cuh"

// v1: one thread for each element.
template <typename T> __global__ void dropout_1(const T* x, T* y, long long size, Dropout how) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= size) return;
  float factor[1];
  dropout_factors(factor, i, how);
  y[i] = from_float<T>(to_float(x[i]) * factor[0]);
}

// v2: one thread for each V neighbouring elements; V is a multiple of the 4 that share a counter.
template <typename T, int V> __global__ void dropout_2(const T* x, T* y, long long size, Dropout how) {
  long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i >= size) return;
  float factor[V], value[V];
  dropout_factors(factor, i, how);
  load(value, x + i);
#pragma unroll
  for (int j = 0; j < V; j++) value[j] *= factor[j];
  store(y + i, value);
}
