// The threads of a block as fibers, for cuda_cpu.h, and the races between them.
//
// Races are found in whichever order threads run: `Cell` remembers who touched each part of shared memory and when, and
// two accesses that no barrier separates are a race unless both read. An asynchronous copy may land at any time between
// its issue and the return of the wait for it, so any access to its target in that time is one, too, and so is an
// access by another thread after the wait but before a barrier. g++ reports every access (-fsanitize=thread), and the
// functions `__tsan_...`, which it calls for that, are in this file.
#pragma once
#include <setjmp.h>
#include <ucontext.h>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define UNOBSERVED __attribute__((noinline, no_sanitize("thread")))
#define UNOBSERVED_INLINE __attribute__((always_inline, no_sanitize("thread"))) inline

struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

namespace cpu {

// Fibers --------------------------------------------------------------------------------------------------------------

enum State { RUNNING, AT_COLLECTIVE, AT_BARRIER, DONE };
enum Collective { SHUFFLE = 1, SYNC_WARP, MMA, LOAD_MATRICES, LOAD_TRANSPOSED };
constexpr int LANES = 32, MAX_THREADS = 1024, MAX_COPIES = 512;
constexpr size_t STACK = 64 << 10;

struct Copy {
  void* target;
  const void* source;
  bool valid;
  int group;  // counted from 0; copies of the open group have the number of commits so far
};

struct Fiber {
  ucontext_t context;
  jmp_buf jump;
  State state;
  int collective;
  bool started;
  uint3 thread;
  int number, parity;
  unsigned warp_time;  // how many __syncwarp it has passed
  int copy_count, commits;
  Copy copies[MAX_COPIES];  // unfinished
};

struct alignas(16) Slot { unsigned char bytes[64]; };  // the value that a lane shows to the others of its warp

inline Fiber* fibers;
inline char* stacks;
inline Slot slots[2][MAX_THREADS];
inline jmp_buf scheduler;
inline Fiber* current;
inline uint3 block_index, block_size, grid_size;
inline unsigned char* shared;
inline size_t shared_size;
inline bool is_reverse;
inline void (*entry)();

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "cuda_cpu: %s (block %u,%u,%u thread %d)\n", what, block_index.x, block_index.y, block_index.z,
          current ? current->number : -1);
  abort();
}
inline void yield(State state, int collective = 0) {
  current->state = state;
  current->collective = collective;
  if (!_setjmp(current->jump)) _longjmp(scheduler, 1);
}
inline void run_fiber() {  // once for each block: making a context takes longer than most threads do
  for (;;) {
    entry();
    if (current->copy_count) fail("an asynchronous copy was never waited for");
    yield(DONE);
  }
}
inline void resume(Fiber* fiber) {
  current = fiber;
  if (_setjmp(scheduler)) return;
  if (fiber->started) _longjmp(fiber->jump, 1);
  fiber->started = true;
  setcontext(&fiber->context);
}

// Races ---------------------------------------------------------------------------------------------------------------

enum Readers : unsigned char { NOBODY, ONE_LANE, ONE_WARP, MANY };
constexpr int CELL = 2;  // bytes

// The last write to 2 bytes of shared memory and the reads since then. A moment is the number of barriers that the
// block has passed, with all blocks before it, and the number of __syncwarp that the warp has.
struct Cell {
  unsigned write_time, write_warp_time, read_time, read_warp_time;
  unsigned short writer, reader;  // numbers of threads
  bool pending;                   // whether a copy into it has been issued and not been waited for
  Readers readers;
};
inline Cell* cells;
inline unsigned block_time;

UNOBSERVED_INLINE bool is_ordered(unsigned time, unsigned warp_time, int thread) {
  if (time < block_time || thread == current->number) return true;
  return thread / LANES == current->number / LANES && warp_time < current->warp_time;
}
[[noreturn]] UNOBSERVED inline void report(const char* what, size_t at, int other) {
  char text[200];
  snprintf(text, sizeof text, "a race on shared memory: %s byte %zu, after thread %d", what, at, other);
  fail(text);
}
UNOBSERVED_INLINE void check_write(Cell& c, size_t at) {
  if (c.pending) report("a write while a copy may still land on", at, c.writer);
  if (!is_ordered(c.write_time, c.write_warp_time, c.writer)) report("two writes without a barrier to", at, c.writer);
  bool same = c.readers == ONE_LANE && c.reader == current->number, mine = c.reader / LANES == current->number / LANES;
  bool separate = c.read_time < block_time || (c.readers != MANY && mine && c.read_warp_time < current->warp_time);
  if (c.readers != NOBODY && !same && !separate) report("a write without a barrier after a read of", at, c.reader);
}
UNOBSERVED_INLINE void set_written(Cell& c, bool pending) {
  c = {block_time, current->warp_time, 0, 0, (unsigned short)current->number, 0, pending, NOBODY};
}
UNOBSERVED_INLINE void check_read(Cell& c, size_t at) {
  if (c.pending) report("a read while a copy may still land on", at, c.writer);
  if (!is_ordered(c.write_time, c.write_warp_time, c.writer)) report("a read without a barrier of", at, c.writer);
  bool fresh = c.readers == NOBODY || c.read_time < block_time;
  if (fresh)
    c.readers = ONE_LANE;
  else if (c.reader / LANES != current->number / LANES)
    c.readers = MANY;
  else if (c.readers == ONE_LANE && c.reader != current->number)
    c.readers = ONE_WARP;
  c.reader = (unsigned short)current->number, c.read_time = block_time, c.read_warp_time = current->warp_time;
}
UNOBSERVED_INLINE void touch(const void* place, size_t size, bool writes) {
  size_t first = static_cast<const unsigned char*>(place) - shared;
  if (first >= shared_size || !cells || !current) return;
  for (size_t i = first / CELL; i <= (first + size - 1) / CELL; i++) {
    if (writes) check_write(cells[i], i * CELL), set_written(cells[i], false);
    else check_read(cells[i], i * CELL);
  }
}
// A copy is issued, and later waited for.
UNOBSERVED inline void touch_copy(void* place, bool pending) {
  size_t first = static_cast<unsigned char*>(place) - shared;
  if (first >= shared_size) fail("an asynchronous copy to memory outside of the block");
  if (!cells) return;
  for (size_t i = first / CELL; i < (first + 16) / CELL; i++) {
    if (pending) check_write(cells[i], i * CELL);
    set_written(cells[i], pending);
  }
}

}  // namespace cpu

// What g++ calls before each access to memory, with -fsanitize=thread.
#ifdef __SANITIZE_THREAD__
#define OBSERVED(size)                                                                                 \
  UNOBSERVED void __tsan_read##size(void* place) { cpu::touch(place, size, false); }                   \
  UNOBSERVED void __tsan_write##size(void* place) { cpu::touch(place, size, true); }                   \
  UNOBSERVED void __tsan_unaligned_read##size(void* place) { cpu::touch(place, size, false); }         \
  UNOBSERVED void __tsan_unaligned_write##size(void* place) { cpu::touch(place, size, true); }
extern "C" {
OBSERVED(1) OBSERVED(2) OBSERVED(4) OBSERVED(8) OBSERVED(16)
UNOBSERVED void __tsan_read_range(void* place, size_t size) { cpu::touch(place, size, false); }
UNOBSERVED void __tsan_write_range(void* place, size_t size) { cpu::touch(place, size, true); }
UNOBSERVED void __tsan_init() {}
}
#endif
