// Cuts images x (B, C, H, W) into patches y (B, N, C P Q), and puts patches together to images for the gradient.
#include "cuda/common.cuh"

struct Patches {
  int channels, height, width, p, q;
};

// v1: one thread for each element of the patches, whose pixel is found by division.
template <typename T, bool BACK> __global__ void patches_1(T* x, T* y, long long size, Patches a) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= size) return;
  int across = a.width / a.q, down = a.height / a.p, length = a.channels * a.p * a.q;
  int k = int(i % length), n = int(i / length % (down * across));
  int c = k / (a.p * a.q), row = n / across * a.p + k / a.q % a.p, column = n % across * a.q + k % a.q;
  T* pixel = x + ((i / length / (down * across) * a.channels + c) * a.height + row) * a.width + column;
  if (BACK)
    *pixel = y[i];
  else
    y[i] = *pixel;
}

// v2: one thread for each row of a patch, whose first pixel is found by division; neighbouring threads take
// neighbouring patches.
template <typename T, bool BACK> __global__ void patches_2(T* x, T* y, long long rows, Patches a) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= rows) return;
  int across = a.width / a.q, down = a.height / a.p, length = a.channels * a.p * a.q;
  int n = int(i % across), row = int(i / across % a.height), c = int(i / across / a.height % a.channels);
  long long image = i / across / a.height / a.channels;
  T* pixels = x + ((image * a.channels + c) * a.height + row) * a.width + n * a.q;
  T* part = y + ((image * down + row / a.p) * across + n) * length + (c * a.p + row % a.p) * a.q;
  for (int j = 0; j < a.q; j++)
    if (BACK)
      pixels[j] = part[j];
    else
      part[j] = pixels[j];
}
