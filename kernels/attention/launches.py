"""Launch configurations of attention in CUDA C++: which kernels serve a call of a given shape, and with which grid.

The versions are described in cupy_raw.py.
"""

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..cuda.device import CTYPES, GRID, LARGEST, Device, Kernel

_FMA, _MMA = "attention/attention.cu", "attention/attention_mma.cu"
_FORWARD_5, _BACKWARD_5 = "attention/attention_5.cu", "attention/attention_backward_5.cu"
WARP, ROWS = 32, 16  # threads of a warp, and its rows on tensor cores
MOST = GRID[1]  # blocks in the second dimension of a grid, and in the third
DEPTHS = (16, 32, 64, 128, 256)
LONGEST = {16: (80, 272), 32: (80, 272), 64: (80, 272), 128: (80,)}  # keys that v4 holds in registers, by head size
TILE = {16: 64, 32: 64, 64: 64, 128: 64, 256: 16}  # keys in a tile of v3, forward
TILE_BACKWARD = {16: 64, 32: 64, 64: 64, 128: 32, 256: 16}
LONGEST_TILE = {16: 96, 32: 96, 64: 96, 128: 80}  # keys that v5 holds in registers at once
LONGEST_TILES = {16: 64, 32: 64, 64: 64, 128: 32}  # and of each tile, if a head has more
LONGEST_HEAD = 288  # keys that v5 holds in shared memory: with more, one block would fill it


class Extras(enum.IntFlag):
    """What a call has besides q, k and v; the bits of EXTRAS in attention_5.cuh. v3 asks only whether there is any."""

    CAUSAL = 1
    MASK = 2
    BIAS = 4
    DROPOUT = 8
    ANY_SCALE = 16  # it is not a positive number


@dataclass(frozen=True)
class Shape:
    """The properties of a call that its launches depend on.

    `shared` is the most bytes of shared memory that a block may have.
    """

    ctype: str
    batch_heads: int
    queries: int
    keys: int
    depth: int
    extras: Extras
    shared: int = 232_448

    @property
    def d(self) -> int:
        """The head size for which the kernel is compiled."""
        return next(d for d in DEPTHS if d >= self.depth)


@dataclass(frozen=True)
class Launch:
    """A kernel and how to launch it."""

    kernel: Kernel
    grid: tuple[int, ...]
    threads: int
    shared: int


def _padded(n: int) -> int:
    return -(-n // ROWS) * ROWS


def grid_of_heads(batch_heads: int) -> tuple[int, int]:
    """Return the second and third dimension of a grid whose blocks each serve one head; see `why_too_many`."""
    times = range(max(-(-batch_heads // MOST), 1), MOST + 1)
    return next(((batch_heads // n, n) for n in times if batch_heads % n == 0), (batch_heads, 1))


def why_too_many(q: Any, k: Any) -> str | None:
    """Return the reason why kernels cannot count the heads, queries or keys of q (..., N, D) and k (..., S, D)."""
    batch_heads = math.prod(q.shape[:-2])
    if max(batch_heads, q.shape[-2], k.shape[-2]) > LARGEST:
        return f"q has shape {q.shape} and k {k.shape}; there may be at most {LARGEST} heads, queries and keys"
    if max(grid_of_heads(batch_heads)) > MOST:
        return f"q has {batch_heads} heads in its batch, which is no product of two numbers up to {MOST}"
    return None


def _grid(blocks: int, s: Shape) -> tuple[int, int, int]:
    """Return a grid with so many blocks for each head."""
    return blocks, *grid_of_heads(s.batch_heads)


def _each_row(name: str, s: Shape, rows: int, shared: int = 0) -> Launch:
    return Launch(Kernel(_FMA, f"{name}<{s.ctype}>"), _grid(rows, s), WARP, shared)


def _products(s: Shape, in_order: bool = True) -> Launch:
    kernel = Kernel(_FMA, f"attention_products<{s.ctype}, {_bool(in_order)}>")
    return Launch(kernel, _grid(s.queries, s), WARP, 0)


def forward_1(s: Shape) -> list[Launch]:
    return [_each_row("attention_forward_1", s, s.queries, 4 * s.keys)]


def backward_1(s: Shape) -> list[Launch]:
    return [
        _products(s, in_order=False),
        _each_row("attention_dq_1", s, s.queries),
        _each_row("attention_dkv_1", s, s.keys),
    ]


def _tiles(d: int) -> tuple[int, int]:
    """Return the rows and columns of a tile of v2."""
    return (32 if d <= 128 else 16), (32 if d <= 64 else 16 if d <= 128 else 8)


def forward_2(s: Shape) -> list[Launch]:
    rows, columns = _tiles(d := max(s.d, 32))
    kernel = Kernel(_FMA, f"attention_forward_2<{s.ctype}, {d}>")
    return [Launch(kernel, _grid(-(-s.queries // rows), s), 128, 4 * (rows + 2 * columns) * (d + 1))]


def backward_2(s: Shape) -> list[Launch]:
    rows, columns = _tiles(d := max(s.d, 32))
    shared = 8 * (rows + columns) * (d + 1)
    return [_products(s)] + [
        Launch(
            Kernel(_FMA, f"attention_backward_2<{s.ctype}, {d}, {of_keys}>"),
            _grid(-(-count // rows), s),
            128,
            shared,
        )
        for of_keys, count in (("false", s.queries), ("true", s.keys))
    ]


def forward_3(s: Shape) -> list[Launch]:
    if s.ctype == "float":
        return []
    d, warps = s.d, 4
    kernel = Kernel(_MMA, f"attention_forward_3<{s.ctype}, {d}, {TILE[d]}, {_bool(bool(s.extras))}>")
    shared = 2 * (d + 8) * (warps * ROWS + 4 * TILE[d])
    return [Launch(kernel, _grid(-(-s.queries // (warps * ROWS)), s), warps * WARP, shared)]


def backward_3(s: Shape) -> list[Launch]:
    if s.ctype == "float":
        return []
    return [_products(s), *_parts(_MMA, "attention_backward_3", s, TILE_BACKWARD[s.d], _bool(bool(s.extras)))]


def _parts(source: str, name: str, s: Shape, c: int, extras: str) -> list[Launch]:
    """Return the launches for the gradients of queries and of keys, with tiles of `c` columns."""
    d, warps = s.d, 4 if s.d < 256 else 2
    parts = [("false", "true, false", s.queries)]  # whether of keys, which of the two gradients, and of how many rows
    if d < 256:
        parts.append(("true", "true, true", s.keys))
    else:  # registers cannot hold dk and dv at once
        parts += [("true", "true, false", s.keys), ("true", "false, true", s.keys)]
    launches = []
    for of_keys, which, count in parts:
        kernel = Kernel(source, f"{name}<{s.ctype}, {d}, {c}, {of_keys}, {which}, {extras}>")
        span = 2 * c if of_keys == "true" else warps * ROWS
        shared = 2 * (d + 8) * (2 * warps * ROWS + 4 * c) + 12 * span
        launches.append(Launch(kernel, _grid(-(-count // (warps * ROWS)), s), warps * WARP, shared))
    return launches


def forward_4(s: Shape) -> list[Launch]:
    longest = next((c for c in LONGEST.get(s.d, ()) if c >= s.keys), None)
    if s.ctype == "float" or s.extras or longest is None:
        return []
    warps = min(4, -(-s.queries // ROWS))
    shared = 2 * (s.d + 8) * (2 * _padded(s.keys) + warps * ROWS)
    kernel = Kernel(_MMA, f"attention_forward_4<{s.ctype}, {s.d}, {longest}>")
    return [Launch(kernel, (s.batch_heads,), warps * WARP, shared)]


def backward_4(s: Shape) -> list[Launch]:
    if s.ctype == "float" or s.extras or s.d > 64:
        return []
    n, k, warps = _padded(s.queries), _padded(s.keys), 4
    shared = 2 * (s.d + 8) * (2 * n + 2 * k + warps * ROWS) + 8 * n
    kernel = Kernel(_MMA, f"attention_backward_4<{s.ctype}, {s.d}, 64>")
    return [Launch(kernel, (s.batch_heads,), warps * WARP, shared)]


def forward_5(s: Shape) -> list[Launch]:
    if s.ctype == "float":
        return []
    d, groups, keys, most = s.d, -(-s.queries // ROWS), _padded(s.keys), 6
    if not s.extras and d in LONGEST_TILE and keys <= LONGEST_HEAD:
        warps = min(groups, most)
        shared = 2 * (d + 8) * (2 * keys + warps * ROWS)
        tile = 0 if keys <= LONGEST_TILE[d] else LONGEST_TILES[d]
        kernel = Kernel(_FORWARD_5, f"attention_forward_5<{s.ctype}, {d}, {tile}, {_tail(keys, tile)}>")
        if shared <= s.shared:
            return [Launch(kernel, (s.batch_heads,), warps * WARP, shared)]
    kernel = Kernel(_FORWARD_5, f"attention_forward_tiles_5<{s.ctype}, {d}, {TILE[d]}, {int(s.extras)}>")
    shared = 2 * (d + 8) * (4 * ROWS + 4 * TILE[d])
    return [Launch(kernel, _grid(-(-groups // 4), s), 4 * WARP, shared)]


def _tail(length: int, tile: int) -> int:
    """Return the size of the last tile, which is never empty."""
    return (length - 1) % tile + 1 if tile else length


def backward_5(s: Shape) -> list[Launch]:
    if s.ctype == "float":
        return []
    d, n, k = s.d, _padded(s.queries), _padded(s.keys)
    if not s.extras and d <= 64:
        warps = 4 if max(n, k) <= 80 else 8
        shared = 2 * (d + 8) * (2 * n + 2 * k + warps * ROWS) + 8 * n
        kernel = Kernel(_BACKWARD_5, f"attention_backward_5<{s.ctype}, {d}, {_tail(k, 64)}, {_tail(n, 64)}>")
        if shared <= s.shared:
            return [Launch(kernel, (s.batch_heads,), warps * WARP, shared)]
    extras, warps, c = int(s.extras), 4, TILE[d]
    kernel = Kernel(_FORWARD_5, f"attention_products_5<{s.ctype}, {d}, {c}, {extras}>")
    shared = 2 * (d + 8) * (warps * ROWS + c) if s.extras & Extras.BIAS else 0
    launches = [Launch(kernel, _grid(-(-n // (warps * ROWS)), s), warps * WARP, shared)]
    few = s.extras & (Extras.MASK | Extras.BIAS | Extras.DROPOUT)  # registers are scarce
    c = max(TILE_BACKWARD[d] // 2, 16) if few else TILE_BACKWARD[d]
    return [*launches, *_parts(_BACKWARD_5, "attention_backward_tiles_5", s, c, str(extras))]


VERSIONS = {
    1: (forward_1, backward_1),
    2: (forward_2, backward_2),
    3: (forward_3, backward_3),
    4: (forward_4, backward_4),
    5: (forward_5, backward_5),
}


def _bool(flag: bool) -> str:
    return "true" if flag else "false"


def plan(version: int, backward: bool, shape: Shape, device: Device) -> list[Launch]:
    """Return the launches of the last version up to `version` that can serve; raise RuntimeError if none fits."""
    launches: list[Launch] = []
    shape = replace(shape, shared=device.shared)
    for number in range(version, 0, -1):
        launches = VERSIONS[number][backward](shape)
        if launches and all(launch.shared <= device.shared for launch in launches):
            return launches
    for launch in launches:
        device.check(launch.kernel, launch.shared)
    return launches


def kernels() -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel, and the most registers that it may use."""
    seen: dict[Kernel, int] = {}
    for ctype in CTYPES.values():
        for depth in DEPTHS:
            for extras in (Extras(0), Extras.CAUSAL):
                for keys in (80, 272):
                    shape = Shape(ctype, 1, 64, keys, depth, extras)
                    for number in range(1, 5):
                        for launch in VERSIONS[number][0](shape) + VERSIONS[number][1](shape):
                            seen[launch.kernel] = 128 if number == 1 or "products" in launch.kernel.expression else 255
        for shape in shapes_of_vits(ctype):
            seen |= {launch.kernel: 255 for launch in forward_5(shape) + backward_5(shape)}
    yield from seen.items()


def shapes_of_vits(ctype: str) -> list[Shape]:
    """Return shapes whose kernels of v5 are compiled in tests; there is one for every length, which is far too many."""
    plain = [Shape(ctype, 1, n, n, 64, Extras(0)) for n in (65, 197, 257)]
    most = Extras.CAUSAL | Extras.MASK | Extras.BIAS | Extras.DROPOUT
    return [*plain, Shape(ctype, 1, 577, 577, 64, most if ctype == "half_t" else Extras(0))]
