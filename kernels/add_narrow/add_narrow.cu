// z = x + y, of float32 and of 16 bits: one thread for each V neighbouring elements.
#include "cuda/common.cuh"

template <typename T, int V> __global__ void add_narrow(const float* x, const T* y, float* z, long long size) {
  long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i >= size) return;
  float left[V], right[V];
  load(left, x + i);
  load(right, y + i);
#pragma unroll
  for (int j = 0; j < V; j++) left[j] += right[j];
  store(z + i, left);
}
