// Shared by forward and backward of v5, attention on tensor cores without branches: there is none between the
// instructions of a tile, so that the loads from shared memory, the products and the exponentials of several steps
// overlap.
//
// A tile has exactly as many columns as are staged, of which the last ones may lie past the end of the head; there the
// scores are replaced, not left out. All that a call may have besides q, k and v is in template arguments.
#pragma once
#include "attention/tiles.cuh"

// The bits of EXTRAS. A scale that is not positive is one, since the largest product is else that of the largest score.
enum { CAUSAL = 1, MASK = 2, BIAS = 4, DROPOUT = 8, ANY_SCALE = 16 };

// Scores and lse are in powers of 2 here.
DEVICE float unit_of(const Attention& a) { return LOG2_E * a.scale; }

// The score of query n and key s. Past the end, that of the last one is taken. Backward must get the same number again
// in each of its kernels, so the order of roundings is written down.
template <typename T, int EXTRAS>
DEVICE float score_of(const Attention& a, const Head& head, int n, int s, float product) {
  int y = min(n, a.queries - 1), x = min(s, a.keys - 1);
  float bias = 0;
  if constexpr ((EXTRAS & BIAS) != 0) {
    const ScoresView& m = a.bias;
    long long at = head.b * m.batch + head.h * m.head + y * m.query + x * m.key;
    bias = LOG2_E * to_float(static_cast<const T*>(m.data)[at]);
  }
  float result = fmaf(product, unit_of(a), bias);
  if constexpr ((EXTRAS & MASK) != 0) {
    const ScoresView& m = a.mask;
    long long at = head.b * m.batch + head.h * m.head + y * m.query + x * m.key;
    result = static_cast<const unsigned char*>(m.data)[at] ? result : -INFINITY;
  }
  if constexpr ((EXTRAS & CAUSAL) != 0) result = s > n ? -INFINITY : result;
  return result;
}

// Dropout ------------------------------------------------------------------------------------------------------------

// A bit for each of the elements first, first + 1, ... (at most 32): 1 if it is kept. Four neighbours share the words
// of one counter, and the first of them may lie before `first`.
template <int COUNT> DEVICE unsigned kept_bits(unsigned long long first, const Dropout& how) {
  unsigned long long seed = how.stream ? how.stream[0] : how.seed, bits = 0;
  unsigned long long offset = how.stream ? how.stream[1] + how.offset : how.offset;
#pragma unroll 1
  for (int i = 0; i <= COUNT / 4; i++) {
    Words words = philox((first >> 2) + i, offset, seed);
#pragma unroll
    for (int k = 0; k < 4; k++) bits |= (unsigned long long)(words.at[k] >= how.threshold) << (4 * i + k);
  }
  return unsigned(bits >> (first & 3));
}

// The factors of dropout for a tile of (16, C) scores. Without OF_KEYS, two lanes draw the bits of one row; with it,
// the tile is transposed, its elements follow each other down its columns, and a lane draws those of two columns.
template <int C, bool OF_KEYS> struct Kept {
  unsigned words[OF_KEYS ? C / 8 : 4];
  float factor;

  DEVICE Kept(const Attention& a, const Head& head, int row, int start) : factor(a.dropout.factor) {
    int lane = threadIdx.x % WARP;
    unsigned long long keys = a.keys;
    unsigned mine = 0;
    if constexpr (!OF_KEYS) {
      mine = kept_bits<C / 2>((head.row + row + lane / 2) * keys + start + lane % 2 * (C / 2), a.dropout);
#pragma unroll
      for (int i = 0; i < 4; i++)
        words[i] = __shfl_sync(ALL_LANES, mine, (lane / 4 + i / 2 * 8) * 2 + i % 2) >> lane % 4 * 2;
    } else {
      if (lane < C / 2) {
        unsigned long long first = (head.row + start + 2 * lane) * keys + row;
        mine = kept_bits<ROWS>(first, a.dropout) & 0xffffu;
        mine |= kept_bits<ROWS>(first + keys, a.dropout) << 16;
      }
#pragma unroll
      for (int j = 0; j < C / 8; j++) words[j] = __shfl_sync(ALL_LANES, mine, 4 * j + lane % 4) >> lane / 4;
    }
  }

  // Of element e of the 8 columns j.
  DEVICE float of(int j, int e) const {
    unsigned word = OF_KEYS ? words[j] >> (e % 2 * 16 + e / 2 * 8)
                            : words[e / 2 * 2 + (8 * j >= C / 2)] >> (8 * j % (C / 2) + e % 2);
    return word & 1 ? factor : 0.f;
  }
};
struct AllKept {
  DEVICE AllKept(const Attention&, const Head&, int, int) {}
  DEVICE float of(int, int) const { return 1.f; }
};
template <bool, typename A, typename B> struct Choice { using type = A; };
template <typename A, typename B> struct Choice<false, A, B> { using type = B; };
template <int C, bool OF_KEYS, int EXTRAS>
using KeptOf = typename Choice<(EXTRAS & DROPOUT) != 0, Kept<C, OF_KEYS>, AllKept>::type;

// r = sum(dout out) of queries from `first` on, of which `count` are written, by all threads of the block: D / 8 lanes
// for a row, with 8 neighbours each, and several rows at once.
template <typename T, int D>
DEVICE void products_with_out(float* r, const Attention& a, const Head& head, int first, int rows, int count) {
  constexpr int LANES = D / 8;
  const T *out = matrix<T>(a.out, head), *dout = matrix<T>(a.dout, head);
  if (a.aligned) {
#pragma unroll 4
    for (int i = threadIdx.x; i < rows * LANES; i += blockDim.x) {  // a multiple of the warp's size
      int row = i / LANES, d = i % LANES * 8, n = first + row;
      bool real = n < a.queries && d < a.depth;
      long long y = min(n, a.queries - 1);
      int x = real ? d : 0;
      float left[8], right[8], sum = 0;
      load(left, out + y * a.out.row + x);
      load(right, dout + y * a.dout.row + x);
#pragma unroll
      for (int e = 0; e < 8; e++) sum += left[e] * right[e];
      sum = warp_sum(real ? sum : 0.f, LANES);
      if (i % LANES == 0 && row < count) r[row] = sum;
    }
  } else {
    for (int i = threadIdx.x; i < rows * LANES; i += blockDim.x) {
      int row = i / LANES, d = i % LANES * 8, n = first + row;
      float sum = 0;
      for (int x = d; n < a.queries && x < min(d + 8, a.depth); x++)
        sum += to_float(out[n * a.out.row + x]) * to_float(dout[n * a.dout.row + x]);
      sum = warp_sum(sum, LANES);
      if (i % LANES == 0 && row < count) r[row] = sum;
    }
  }
}
