"""The random bits of dropout, for a row of elements: Philox4x32-10, with the same words as `tinyvit.functional.random`.

Element e takes word e % 4 of the counter (e // 4, offset) under the key `seed`, and is kept if that word is at least
`threshold` = p 2^32. (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.)
"""

import numpy as np

from .compiler import body

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


@body
def _fill(words, first, seed, offset):
    """Fill words (4 n,) with those of the counters first ... first + n - 1, in order."""
    c2_start, c3_start = np.uint64(offset) & _LOW, np.uint64(offset) >> _HIGH
    k0_start, k1_start = np.uint64(seed) & _LOW, np.uint64(seed) >> _HIGH
    for i in range(words.size // 4):
        counter = np.uint64(first + i)
        c0, c1, c2, c3, k0, k1 = counter & _LOW, counter >> _HIGH, c2_start, c3_start, k0_start, k1_start
        for _ in range(10):
            p0, p1 = c0 * _M0, c2 * _M1
            c0, c1, c2, c3 = (p1 >> _HIGH) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HIGH) ^ c3 ^ k1, p0 & _LOW
            k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
        words[4 * i] = np.uint32(c0)
        words[4 * i + 1] = np.uint32(c1)
        words[4 * i + 2] = np.uint32(c2)
        words[4 * i + 3] = np.uint32(c3)


@body
def keep_row(out, words, first, threshold, factor, seed, offset):
    """Set out (n,) to `factor` where the elements first ... first + n - 1 are kept, else to 0.

    words (n + 8,) is scratch memory.
    """
    start = first // 4
    count = (first + out.size + 3) // 4 - start
    drawn = words[: 4 * count]
    _fill(drawn, start, seed, offset)
    kept = drawn[first - 4 * start :]
    zero = out.dtype.type(0)
    for j in range(out.size):
        out[j] = factor if kept[j] >= threshold else zero
