"""The sizes of the kernels' blocks, tiles and chunks, at whose edges tests try them; import them from here.

Uncompiled kernels get small blocks, and the tiles of a processor without wide vectors, so that small examples cross
every edge. This does not change what they compute, only where they cut it.
"""

from numba.core import config

if config.DISABLE_JIT:
    config.CPU_FEATURES = ""

from tinyvit.kernels.adamw import numba_cpu as adamw
from tinyvit.kernels.add_narrow import numba_cpu as add_narrow
from tinyvit.kernels.attention import by_block as attention
from tinyvit.kernels.cast import numba_cpu as cast
from tinyvit.kernels.clip import numba_cpu as clip
from tinyvit.kernels.conv2d import numba_cpu as conv2d
from tinyvit.kernels.dropout import numba_cpu as dropout
from tinyvit.kernels.embedding import numba_cpu as embedding
from tinyvit.kernels.gelu import numba_cpu as gelu
from tinyvit.kernels.linear import microkernel, operands
from tinyvit.kernels.linear import numba_cpu as linear
from tinyvit.kernels.max_pool2d import numba_cpu as max_pool2d

if config.DISABLE_JIT:
    adamw.CHUNK, clip.CHUNK, dropout.TILE = 64, 64, 64
    cast.CHUNK = add_narrow.CHUNK = gelu.CHUNK = 16
    attention.KEYS, attention.QUERIES = 16, 2 * microkernel.ROWS[0]
    conv2d.PIXELS, conv2d.PARTS = 8, 2
    max_pool2d.PARTS, max_pool2d.WINDOWS, embedding.COLUMNS = 2, 20, 4
    linear.BLOCK, linear.DEPTH, linear.ROWS_AT_LEAST = 2 * microkernel.ROWS[0], 8, 6
    linear.PRODUCTS_AT_LEAST, operands.CROWDED, operands.FEW = 1, 16, 1
    linear.WIDTH, linear.TILE_BYTES = 2 * microkernel.PANEL_BYTES, 4 * microkernel.ROWS[0] * microkernel.PANEL_BYTES

CHUNK, TILE, CAST, ADD, GELU = adamw.CHUNK, dropout.TILE, cast.CHUNK, add_narrow.CHUNK, gelu.CHUNK
KEYS, QUERIES = attention.KEYS, attention.QUERIES
PIXELS, PARTS, IMAGES = conv2d.PIXELS, conv2d.PARTS, max_pool2d.PARTS
COLUMNS = embedding.COLUMNS
BLOCK, DEPTH, PART = linear.BLOCK, linear.AT_ONCE * linear.DEPTH, linear.ROWS_AT_LEAST
CROWDED = operands.CROWDED
WIDTH, HEIGHT = linear.WIDTH, linear.TILE_BYTES // linear.WIDTH  # of a tile of dW: bytes of a row, and number of rows
ROWS, PANEL_BYTES = microkernel.ROWS, microkernel.PANEL_BYTES
