// Shared by the attention kernels: their argument, and the score of a query and a key from their product.
#pragma once
#include "cuda/common.cuh"

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// A (B, H, N, D) view: its last axis is contiguous, the other strides count elements.
struct View {
  void* data;
  long long batch, head, row;
};
// A (B, H, N, S) view with any strides, 0 where it is broadcast; `data` is null if there is no such array.
struct ScoresView {
  const void* data;
  long long batch, head, query, key;
};

struct Attention {
  View q, k, v, out, dout, dq, dk, dv;
  ScoresView bias, mask;
  float *lse, *r, *ds;  // (B, H, N), (B, H, N), (B, H, N, S) or null; r = sum(dout out)
  float *shift, *rest;  // (B, H, N): backward computes p = exp(score - shift - rest)
  Dropout dropout;      // its threshold is 0 if there is no dropout
  int heads, queries, keys, depth;
  float scale;
  int is_causal;
  int aligned;  // all views may be read and written 16 bytes at a time
};

// One head of one image.
struct Head {
  int b, h;
  long long row;  // of its first query in lse and r
};
DEVICE Head head_of(const Attention& a, int index) {
  int b = index / a.heads, h = index % a.heads;
  return {b, h, (long long)index * a.queries};
}
template <typename T> DEVICE T* matrix(const View& view, const Head& head) {
  return static_cast<T*>(view.data) + head.b * view.batch + head.h * view.head;
}

// scale q k^T + bias for query n and key s, from their product; -inf if n may not see s.
template <typename T, bool EXTRAS>
DEVICE float score(const Attention& a, const Head& head, int n, int s, float product) {
  if (s >= a.keys) return -INFINITY;
  float x = product * a.scale;
  if (EXTRAS && n < a.queries) {
    if (a.is_causal && s > n) return -INFINITY;
    if (a.mask.data) {
      const ScoresView& m = a.mask;
      long long at = head.b * m.batch + head.h * m.head + n * m.query + s * m.key;
      if (!static_cast<const unsigned char*>(m.data)[at]) return -INFINITY;
    }
    if (a.bias.data) {
      const ScoresView& m = a.bias;
      long long at = head.b * m.batch + head.h * m.head + n * m.query + s * m.key;
      x += to_float(static_cast<const T*>(m.data)[at]);
    }
  }
  return x;
}

// The factor of dropout for query n and key s.
template <bool EXTRAS> DEVICE float kept(const Attention& a, const Head& head, int n, int s) {
  if (!EXTRAS || !a.dropout.threshold || n >= a.queries || s >= a.keys) return 1.f;
  float factor[1];
  dropout_factors(factor, (head.row + n) * (unsigned long long)a.keys + s, a.dropout);
  return factor[0];
}

// The number that is subtracted from scores before they are exponentiated: their largest or their lse, or 0 if the
// query sees no key.
DEVICE float shift_of(float x) { return x == -INFINITY ? 0.f : x; }
