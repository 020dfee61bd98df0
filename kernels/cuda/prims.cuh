// Hardware primitives beyond plain CUDA C++: 16-bit floats, tensor cores, asynchronous copies.
//
// All inline PTX of this project is in this file, and no file includes a CUDA header, so a kernel compiles quickly.
// Without a CUDA compiler the same functions come from the test-only header cuda_cpu.h, which runs kernels on the CPU.
#pragma once

struct half_t { unsigned short bits; };    // IEEE binary16
struct bfloat_t { unsigned short bits; };  // the upper half of a float

#ifdef __CUDACC__

#define INFINITY __int_as_float(0x7f800000)
// All shared memory is dynamic, and the launcher checks its size against the limit of the device.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define DEVICE __device__ __forceinline__

// Conversions; ties go to even ---------------------------------------------------------------------------------------

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bfloat_t x) { return __uint_as_float(unsigned(x.bits) << 16); }
DEVICE float to_float(half_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

template <typename T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE half_t from_float<half_t>(float x) {
  half_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <> DEVICE bfloat_t from_float<bfloat_t>(float x) {
#if __CUDA_ARCH__ >= 800
  bfloat_t y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  unsigned u = __float_as_uint(x);
  unsigned rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  return {(unsigned short)((u & 0x7fffffffu) > 0x7f800000u ? u >> 16 | 64u : rounded)};
#endif
}

// Two numbers in one register, the first in its lower half.
template <typename T> DEVICE unsigned pack(float low, float high) {
  return unsigned(from_float<T>(low).bits) | unsigned(from_float<T>(high).bits) << 16;
}
#if __CUDA_ARCH__ >= 800
template <> DEVICE unsigned pack<half_t>(float low, float high) {
  unsigned y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
template <> DEVICE unsigned pack<bfloat_t>(float low, float high) {
  unsigned y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
#endif

// 2^x, to 2 units in the last place; 2^-inf = 0.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Tensor cores -------------------------------------------------------------------------------------------------------

// d (16, 8) += a (16, 16) b (16, 8), by a warp. Lane l, with g = l / 4 and t = l % 4, holds
//   a[0] (g, 2t), a[1] (g + 8, 2t), a[2] (g, 2t + 8), a[3] (g + 8, 2t + 8), each with its neighbour to the right;
//   b[0] (2t, g), b[1] (2t + 8, g), each with its neighbour below; d[0..1] (g, 2t), (g, 2t + 1), d[2..3] 8 rows lower.
// (PTX ISA, mma.m16n8k16.) Before sm_80 the depth is 8, and bfloat16 is missing.
#if __CUDA_ARCH__ >= 800
#define MMA_M16N8K16(type)                                                                                             \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"     \
               "{%0,%1,%2,%3};"                                                                                        \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
DEVICE void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], half_t) { MMA_M16N8K16("f16"); }
DEVICE void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], bfloat_t) { MMA_M16N8K16("bf16"); }
#else
DEVICE void mma_half_depth(float (&d)[4], unsigned a0, unsigned a1, unsigned b0) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(b0));
}
DEVICE void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], half_t) {
  mma_half_depth(d, a[0], a[1], b[0]);
  mma_half_depth(d, a[2], a[3], b[1]);
}
#endif

// Loads four 8 x 8 matrices of 16-bit numbers. Lane l passes the address of row l % 8 of matrix l / 8, and receives
// from each matrix the element (l / 4, 2 (l % 4)) and its neighbour to the right; transposed, the element
// (2 (l % 4), l / 4) and its neighbour below.
DEVICE void load_matrices(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((unsigned)__cvta_generic_to_shared(row))
               : "memory");
}
DEVICE void load_matrices_transposed(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((unsigned)__cvta_generic_to_shared(row))
               : "memory");
}

// Has a cache line of global memory fetched into the second cache.
DEVICE void prefetch(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }

// Asynchronous copies ------------------------------------------------------------------------------------------------

// Copies 16 bytes from global to shared memory, both aligned to 16; zeros unless `valid`. Before sm_80 the copy is
// synchronous.
DEVICE void copy_async(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
#else
  *(uint4*)shared = valid ? *(const uint4*)global : make_uint4(0, 0, 0, 0);
#endif
}
DEVICE void copy_commit() {  // closes a group of copies
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int PENDING> DEVICE void copy_wait() {  // until at most PENDING groups of this thread are unfinished
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

#else
#include "cuda_cpu.h"
#endif
