// CUDA C++ on the CPU, for tests only: g++ compiles the sources of the kernels, which run one block after the other,
// with one fiber for each CUDA thread.
//
// A warp runs as far as it can before the next warp, and a lane as far as it can before the next lane, because in this
// order a missing barrier shows best. `schedule` says which goes first: 0 forward, 1 reverse, else shuffled anew at
// each barrier. In reverse, blocks run in reverse as well, and asynchronous copies take place immediately and not when
// they are waited for. Shared memory is NaN at the start of a block, and exactly as large as requested. Whatever would
// hang or be undefined on a GPU (a barrier or a warp collective that not all threads reach, a misaligned access, a
// copy that is never waited for, a race on shared memory) ends the process with a message.
#pragma once
#include <utility>
#include "cuda_fibers.h"

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define DEVICE inline

namespace cpu {

// Scheduling ----------------------------------------------------------------------------------------------------------

struct Random {  // xorshift
  uint32_t state;
  unsigned below(unsigned n) {
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return state % n;
  }
};

// Runs the lanes of one warp until all are at a barrier or done; returns whether any of them ran.
inline bool run_warp(int first, int last, bool reverse) {
  bool ran = false;
  for (;;) {
    for (int i = first; i < last; i++) {
      Fiber* fiber = &fibers[reverse ? first + last - 1 - i : i];
      if (fiber->state == RUNNING) resume(fiber), ran = true;
    }
    int waiting = 0;
    for (int i = first; i < last; i++) waiting += fibers[i].state == AT_COLLECTIVE;
    if (!waiting) return ran;
    if (waiting < last - first) fail("not all lanes of a warp reach its collective");
    for (int i = first; i < last; i++)
      if (fibers[i].collective != fibers[first].collective) fail("the lanes of a warp are at different collectives");
    for (int i = first; i < last; i++) fibers[i].state = RUNNING;
  }
}

inline void run_block(int threads, int schedule) {
  int warps = (threads + LANES - 1) / LANES, order[MAX_THREADS / LANES];
  Random random{uint32_t(schedule) * 2654435761u + block_index.x + 1};
  for (int w = 0; w < warps; w++) order[w] = schedule == 1 ? warps - 1 - w : w;
  for (int i = 0; i < threads; i++) {
    Fiber& f = fibers[i];
    f.state = RUNNING, f.number = i, f.parity = f.copy_count = f.commits = 0, f.warp_time = 0;
    f.thread = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
    if (f.started) continue;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks + i * STACK;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_fiber, 0);
  }
  for (;;) {
    bool ran = false;
    block_time++;
    if (schedule > 1)
      for (int w = warps - 1; w > 0; w--) std::swap(order[w], order[random.below(w + 1)]);
    for (int w = 0; w < warps; w++) {
      int first = order[w] * LANES, last = first + LANES < threads ? first + LANES : threads;
      bool reverse = schedule == 1 || (schedule > 1 && random.below(2));
      ran |= run_warp(first, last, reverse);
    }
    int done = 0;
    for (int i = 0; i < threads; i++) done += fibers[i].state == DONE;
    if (done == threads) return;
    current = nullptr;
    if (done || !ran) fail("not all threads reach a __syncthreads");
    for (int i = 0; i < threads; i++) fibers[i].state = RUNNING;
  }
}

// Calls `kernel` with the arguments that `arguments` points to, for every block.
template <typename... A, size_t... I>
void launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block, size_t shared_bytes, void** arguments,
            int schedule, std::index_sequence<I...>) {
  static void (*called)(A...);
  static void** given;
  called = kernel, given = arguments;
  entry = [] { called(*static_cast<A*>(given[I])...); };
  grid_size = {grid[0], grid[1], grid[2]}, block_size = {block[0], block[1], block[2]};
  int threads = block[0] * block[1] * block[2];
  is_reverse = schedule == 1;
  if (!fibers) {  // all that there can be, kept for later launches; pages that are not touched take no memory
    fibers = static_cast<Fiber*>(calloc(MAX_THREADS, sizeof(Fiber)));
    stacks = static_cast<char*>(malloc(MAX_THREADS * STACK));
    if (!fibers || !stacks) fail("no memory");
  }
  if (threads > MAX_THREADS) fail("more threads than a block may have");
#ifdef __SANITIZE_THREAD__
  cells = new Cell[shared_bytes / CELL + 1]();
#endif
  for (unsigned i = 0, blocks = grid[0] * grid[1] * grid[2]; i < blocks; i++) {
    unsigned block = is_reverse ? blocks - 1 - i : i;
    block_index = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
    void* memory = nullptr;
    if (shared_bytes && posix_memalign(&memory, 128, shared_bytes)) fail("no memory");
    if (memory) memset(memory, 0xff, shared_bytes);
    shared = static_cast<unsigned char*>(memory), shared_size = shared_bytes;
    run_block(threads, schedule);
    current = nullptr;
    free(memory);
  }
  delete[] cells;
  cells = nullptr;
}
template <typename... A>
void launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block, size_t shared_bytes, void** arguments,
            int schedule) {
  launch(kernel, grid, block, shared_bytes, arguments, schedule, std::index_sequence_for<A...>{});
}

// A warp collective: each lane shows a value, waits for the others, and may then read the value of any lane.
template <typename T> struct Shown {
  const Slot* first;
  const T& of(int lane) const { return *reinterpret_cast<const T*>(first + lane); }
};
template <typename T> UNOBSERVED Shown<T> show(int collective, const T& value) {
  static_assert(sizeof(T) <= sizeof(Slot));
  int number = current->number;
  Slot* mine = slots[current->parity ^= 1];  // other lanes may still read the other half
  memcpy(&mine[number], &value, sizeof value);
  yield(AT_COLLECTIVE, collective);
  return {mine + number / LANES * LANES};
}
inline int lane() { return current->number % LANES; }
inline void require_full(unsigned mask) {
  if (mask != 0xffffffffu) fail("a warp collective with a partial mask");
}

}  // namespace cpu

#define EXPORT(symbol, ...)                                                                                            \
  extern "C" __attribute__((visibility("default")))                                                                    \
  void symbol(const unsigned* grid, const unsigned* block, size_t shared, void** arguments, int schedule) {            \
    cpu::launch(__VA_ARGS__, grid, block, shared, arguments, schedule); \
  }
#define DYNAMIC_SHARED(name) unsigned char* name = cpu::shared

// CUDA C++ ------------------------------------------------------------------------------------------------------------

#define threadIdx (cpu::current->thread)
#define blockIdx (cpu::block_index)
#define blockDim (cpu::block_size)
#define gridDim (cpu::grid_size)

inline void __syncthreads() { cpu::yield(cpu::AT_BARRIER); }
inline void __syncwarp(unsigned mask = ~0u) {
  cpu::require_full(mask);
  cpu::show(cpu::SYNC_WARP, 0);
  cpu::current->warp_time++;
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int step) {
  cpu::require_full(mask);
  int from = cpu::lane() ^ step;
  return cpu::show(cpu::SHUFFLE, value).of(from);
}
template <typename T> T __shfl_sync(unsigned mask, T value, int from) {
  cpu::require_full(mask);
  return cpu::show(cpu::SHUFFLE, value).of(from & 31);
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }

// The functions of prims.cuh ------------------------------------------------------------------------------------------

inline float to_float(float x) { return x; }
inline float to_float(half_t x) {
  _Float16 y;
  memcpy(&y, &x, 2);
  return float(y);
}
inline float to_float(bfloat_t x) {
  uint32_t u = uint32_t(x.bits) << 16;
  float y;
  memcpy(&y, &u, 4);
  return y;
}
template <typename T> T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline half_t from_float<half_t>(float x) {
  _Float16 y = _Float16(x);
  half_t z;
  memcpy(&z, &y, 2);
  return z;
}
template <> inline bfloat_t from_float<bfloat_t>(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return {uint16_t(u >> 16 | 64)};
  return {uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
template <typename T> unsigned pack(float low, float high) {
  return unsigned(from_float<T>(low).bits) | unsigned(from_float<T>(high).bits) << 16;
}
inline float exp2_fast(float x) { return exp2f(x); }
inline void prefetch(const void* global) { (void)*static_cast<const volatile unsigned char*>(global); }

// The coordinates of each element of the matrices, from the tables of the PTX ISA.
template <typename T> UNOBSERVED void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], T) {
  struct Fragments { T a[4][2], b[2][2]; } mine;
  memcpy(mine.a, a, 16);
  memcpy(mine.b, b, 8);
  auto warp = cpu::show(cpu::MMA, mine);
  int lane = cpu::lane();
  for (int i = 0; i < 4; i++) {
    int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; k++) {
      T left = warp.of(row % 8 * 4 + k % 8 / 2).a[k / 8 * 2 + row / 8][k % 2];
      T right = warp.of(column * 4 + k % 8 / 2).b[k / 8][k % 2];
      sum += to_float(left) * to_float(right);
    }
    d[i] += sum;
  }
}
namespace cpu {
inline void load_matrices(unsigned (&r)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("a row for ldmatrix is not aligned to 16 bytes");
  touch(row, 16, false);  // which lanes read a row is left open: here both this one and those that get its elements do
  auto rows = show(transposed ? LOAD_TRANSPOSED : LOAD_MATRICES, static_cast<const uint16_t*>(row));
  int l = lane();
  for (int m = 0; m < 4; m++) {
    uint16_t pair[2];
    for (int i = 0; i < 2; i++) {
      int y = transposed ? l % 4 * 2 + i : l / 4, x = transposed ? l / 4 : l % 4 * 2 + i;
      pair[i] = rows.of(m * 8 + y)[x];
    }
    memcpy(&r[m], pair, 4);
  }
}
}  // namespace cpu
inline void load_matrices(unsigned (&r)[4], const void* row) { cpu::load_matrices(r, row, false); }
inline void load_matrices_transposed(unsigned (&r)[4], const void* row) { cpu::load_matrices(r, row, true); }

// A copy may take place at any time until it is waited for: here either immediately, or only then.
namespace cpu {
UNOBSERVED inline void carry_out(const Copy& c) {
  if (c.valid)
    memcpy(c.target, c.source, 16);
  else
    memset(c.target, 0, 16);
}
}  // namespace cpu
inline void copy_async(void* shared, const void* global, bool valid) {
  if ((uintptr_t(shared) | uintptr_t(global)) % 16) cpu::fail("an asynchronous copy is not aligned to 16 bytes");
  cpu::Fiber* f = cpu::current;
  if (f->copy_count == cpu::MAX_COPIES) cpu::fail("too many asynchronous copies");
  cpu::touch_copy(shared, true);
  f->copies[f->copy_count++] = {shared, global, valid, f->commits};
  if (cpu::is_reverse) cpu::carry_out(f->copies[f->copy_count - 1]);
}
inline void copy_commit() { cpu::current->commits++; }
template <int PENDING> void copy_wait() {
  cpu::Fiber* f = cpu::current;
  int left = 0;
  for (int i = 0; i < f->copy_count; i++) {
    cpu::Copy& c = f->copies[i];
    if (c.group >= f->commits - PENDING)
      f->copies[left++] = c;
    else {
      if (!cpu::is_reverse) cpu::carry_out(c);
      cpu::touch_copy(c.target, false);
    }
  }
  f->copy_count = left;
}
