"""Dropout, forward and backward: y = x m and dx = dy m; both draw the factors m from the same stream.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | all factors first, then the product                                                                    |
| v2      | `TILE` factors at a time, which never leave the cache; threads share the tiles                         |

Measured with two threads on a Zen 4, for (8320, 768), p = 0.1: v1 is 16.7 and 16.4 times as fast as the plain rule, v2
is 1.4 and 1.9 times as fast as v1 forward and backward (`python -m benchmarks.versions dropout`).

The factor of an element depends on its index alone (`philox`), so any thread may do any chunk, in any order.
"""

import numpy as np

from ..cpu.arrays import dense
from ..cpu.chunks import DRAWS, bounds, team_for
from ..cpu.compiler import body, entry
from ..cpu.philox import keep_row
from ..cpu.threads import parallel

TILE = 2048  # elements; a multiple of 4, the number of words for each counter


# v1 -----------------------------------------------------------------------------------------------------------------


@entry
def _apply_1(x, y, threshold, factor, seed, offset, team):
    words = np.empty(x.size + 8, np.uint32)
    keep_row(y, words, 0, threshold, factor, seed, offset)
    for j in range(x.size):
        y[j] *= x[j]


# v2 -----------------------------------------------------------------------------------------------------------------


@body
def _apply_chunk(chunk, chunks, x, y, threshold, factor, seed, offset):
    tiles = (x.size + TILE - 1) // TILE
    words = np.empty(TILE + 8, np.uint32)
    for t in range(*bounds(tiles, chunk, chunks)):
        source, out = x[t * TILE : t * TILE + TILE], y[t * TILE : t * TILE + TILE]
        keep_row(out, words, t * TILE, threshold, factor, seed, offset)
        for j in range(out.size):
            out[j] *= source[j]


@entry
def _apply_2(x, y, threshold, factor, seed, offset, team):
    chunks = min(64, (x.size + TILE - 1) // TILE)
    arguments = (x, y, threshold, factor, seed, offset)
    parallel(_apply_chunk, chunks, team, arguments)


VERSIONS = {1: _apply_1, 2: _apply_2}


# Launchers ----------------------------------------------------------------------------------------------------------


def forward(x, *, p, seed, offset, version):
    """Map x of any shape to y; the elements of x are numbered in row-major order."""
    source = dense(x)
    y = np.empty_like(source)
    factor = source.dtype.type(1 / (1 - p) if p < 1 else 0)
    run = VERSIONS[version]
    run(source.reshape(-1), y.reshape(-1), round(p * 2**32), factor, seed, offset, team_for(y.size, DRAWS))
    return (y,)


def backward(dy, *, p, seed, offset, needs, version):
    """Map dy to dx, with the same factors."""
    return forward(dy, p=p, seed=seed, offset=offset, version=version)
