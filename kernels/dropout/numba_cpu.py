"""Dropout, forward and backward: y = x m and dx = dy m, with the factors m drawn anew each time.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | all factors first, then the product                                                                    |
| v2      | `TILE` factors at a time, which never leave the cache; tiles shared among threads                      |

The factor of an element depends on its number alone (`philox`), so chunks may be done in any order, by anyone.
"""

import numpy as np

from ..cpu.arrays import dense
from ..cpu.chunks import DRAWS, bounds, team_for
from ..cpu.compiler import body, entry
from ..cpu.philox import keep_row
from ..cpu.threads import parallel

TILE = 2048  # elements, a multiple of the 4 of a counter


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
    """x of any shape -> y, the elements of x numbered in row-major order."""
    source = dense(x)
    y = np.empty_like(source)
    factor = source.dtype.type(1 / (1 - p) if p < 1 else 0)
    run = VERSIONS[version]
    run(source.reshape(-1), y.reshape(-1), round(p * 2**32), factor, seed, offset, team_for(y.size, DRAWS))
    return (y,)


def backward(dy, *, p, seed, offset, needs, version):
    """dy -> dx, by the same factors."""
    return forward(dy, p=p, seed=seed, offset=offset, version=version)
