"""Scaled dot-product attention in CUDA C++, forward and backward.

| version | what it changes, and gains                                                                               |
|---------|----------------------------------------------------------------------------------------------------------|
| v1      | one warp for each query, written like the formula, with all scores of the query in shared memory; for    |
|         | the gradients of k and v, one warp for each key                                                          |
| v2      | tiles of rows against tiles of columns, each read once from memory into shared memory; a running maximum |
|         | (online softmax: Milakov and Gimelshein, 2018; Dao et al., FlashAttention, 2022)                         |
| v3      | tensor cores, for float16 and bfloat16; probabilities stay in registers, and the next tile is copied     |
|         | while this one is used                                                                                   |
| v4      | all keys of a head in shared memory and all scores of a query in registers, where they fit, as in ViTs:  |
|         | nothing is rescaled, and forward and backward read q, k and v only once                                  |

The gradients of queries and of keys are computed separately, each with the products it needs, so that no two blocks add
to the same element: there are no atomics, and the bits are always the same. A version that cannot serve a call leaves
it to the one before: v3 and v4 need 16-bit floats, v4 needs short sequences without mask, bias and dropout, and each
needs its shared memory.

q (B, H, N, D), k and v (B, H, S, D) are views of any strides whose last axis is contiguous. If they are aligned to 16
bytes, and so is D, they are read 16 bytes at a time. out lies in memory as (B, N, H, D). Forward saves lse (B, H, N) in
float32. Where lse is so large that its rounding error would show in probabilities of float32, backward computes the
largest score and the logarithm of the sum of exponentials again. v4 does not: without bias and mask, a score near lse
is a product that float32 has rounded by as much as lse itself. The error of p is then a quarter of a rounding to
float16 up to |lse| = 4096, and of one to bfloat16 up to 32768.
"""

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..cuda.device import CTYPES, Device, Kernel, address, device_of, is_aligned, library_of
from ..cuda.dropout import Dropout, dropout_of
from .operations import Options, as_heads, operations

_FMA, _MMA = "attention/attention.cu", "attention/attention_mma.cu"
WARP, ROWS = 32, 16  # threads of a warp, and its rows on tensor cores
MOST = 65535  # the most blocks in the second and third dimension of a grid
DEPTHS = (16, 32, 64, 128, 256)
LONGEST = {16: (80, 272), 32: (80, 272), 64: (80, 272), 128: (80,)}  # keys that v4 holds in registers, by head size
TILE = {16: 64, 32: 64, 64: 64, 128: 64, 256: 16}  # keys in a tile of v3, forward
TILE_BACKWARD = {16: 64, 32: 64, 64: 64, 128: 32, 256: 16}


class _View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((n, ctypes.c_longlong) for n in ("batch", "head", "row")))


class _Scores(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((n, ctypes.c_longlong) for n in ("batch", "head", "query", "key")))


class _Attention(ctypes.Structure):
    """The struct `Attention` of attention.cuh."""

    _fields_ = (
        *((name, _View) for name in ("q", "k", "v", "out", "dout", "dq", "dk", "dv")),
        *((name, _Scores) for name in ("bias", "mask")),
        *((name, ctypes.c_void_p) for name in ("lse", "r", "ds", "shift", "rest")),
        ("dropout", Dropout),
        *((name, ctypes.c_int) for name in ("heads", "queries", "keys", "depth")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("is_causal", "aligned")),
    )


@dataclass(frozen=True)
class Shape:
    """The properties of a call that its launches depend on.

    `extras` says that there is a mask, a bias or dropout, or that it is causal.
    """

    ctype: str
    batch_heads: int
    queries: int
    keys: int
    depth: int
    extras: bool

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


# Launch configurations -----------------------------------------------------------------------------------------------


def _padded(n: int) -> int:
    return -(-n // ROWS) * ROWS


def _grid(blocks: int, s: Shape) -> tuple[int, int, int]:
    """Return a grid with so many blocks for each head; heads take two dimensions, whose sizes are limited."""
    times = next(n for n in range(1, s.batch_heads + 2) if s.batch_heads % n == 0 and s.batch_heads // n <= MOST)
    return blocks, s.batch_heads // times, times


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
    kernel = Kernel(_MMA, f"attention_forward_3<{s.ctype}, {d}, {TILE[d]}, {_bool(s.extras)}>")
    shared = 2 * (d + 8) * (warps * ROWS + 4 * TILE[d])
    return [Launch(kernel, _grid(-(-s.queries // (warps * ROWS)), s), warps * WARP, shared)]


def backward_3(s: Shape) -> list[Launch]:
    if s.ctype == "float":
        return []
    d, c = s.d, TILE_BACKWARD[s.d]
    warps = 4 if d < 256 else 2
    parts = [("false", "true", "false", s.queries)]
    if d < 256:
        parts.append(("true", "true", "true", s.keys))
    else:  # registers cannot hold dk and dv at once
        parts += [("true", "true", "false", s.keys), ("true", "false", "true", s.keys)]
    launches = [_products(s)]
    for of_keys, dleft, dright, count in parts:
        kernel = f"attention_backward_3<{s.ctype}, {d}, {c}, {of_keys}, {dleft}, {dright}, {_bool(s.extras)}>"
        span = 2 * c if of_keys == "true" else warps * ROWS
        shared = 2 * (d + 8) * (2 * warps * ROWS + 4 * c) + 12 * span
        launches.append(Launch(Kernel(_MMA, kernel), _grid(-(-count // (warps * ROWS)), s), warps * WARP, shared))
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


VERSIONS = {
    1: (forward_1, backward_1),
    2: (forward_2, backward_2),
    3: (forward_3, backward_3),
    4: (forward_4, backward_4),
}


def _bool(flag: bool) -> str:
    return "true" if flag else "false"


def plan(version: int, backward: bool, shape: Shape, device: Device) -> list[Launch]:
    """Return the launches of the last version up to `version` that can serve; raise RuntimeError if none fits."""
    launches: list[Launch] = []
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
            for extras in (False, True):
                for keys in (80, 272):
                    shape = Shape(ctype, 1, 64, keys, depth, extras)
                    for number, (forward, backward) in VERSIONS.items():
                        for launch in forward(shape) + backward(shape):
                            seen[launch.kernel] = 128 if number == 1 or "products" in launch.kernel.expression else 255
    yield from seen.items()


def refuses(inputs: Any, params: Any) -> str | None:
    """Return the reason why these inputs cannot be served, or None."""
    q, v = inputs["q"], inputs["v"]
    if q.shape[-1] != v.shape[-1] or not 0 < q.shape[-1] <= DEPTHS[-1]:
        return f"the head sizes are {q.shape[-1]} and {v.shape[-1]}; they must be equal and at most {DEPTHS[-1]}"
    if q.dtype.name == "bfloat16" and device_of(q).arch < 80:
        return f"bfloat16 needs compute capability 8.0, and the device has {device_of(q).arch / 10}; use float16"
    return None


# Launchers -----------------------------------------------------------------------------------------------------------


def _heads(array: Any) -> Any:
    """Return `array` as (B, H, N, D) with a contiguous last axis."""
    array = as_heads(array)
    usable = array.strides[3] == array.itemsize or array.shape[3] == 1
    return array if usable else library_of(array).ascontiguousarray(array)


def _view(array: Any) -> _View:
    b, h, n, _ = (s // array.itemsize for s in array.strides)
    return _View(address(array), b, h, n)


def _scores(view: Any) -> _Scores:
    """Describe a bias or mask (B, H, N, S), or None."""
    return _Scores() if view is None else _Scores(address(view), *(s // view.itemsize for s in view.strides))


def _argument(q: Any, k: Any, bias: Any, options: Options) -> tuple[_Attention, Shape]:
    """Return the argument of all launches, as far as forward and backward share it, and the shape they depend on."""
    dropout = dropout_of(options.dropout_p, options.seed, options.offset)
    given = _Attention(bias=_scores(bias), mask=_scores(options.mask), dropout=dropout)
    (batch, given.heads, given.queries, given.depth), given.keys = q.shape, k.shape[2]
    given.scale, given.is_causal = options.scale, options.is_causal
    extras = bias is not None or options.mask is not None or options.is_causal or options.dropout_p > 0
    return given, Shape(CTYPES[q.dtype.name], batch * q.shape[1], q.shape[2], k.shape[2], q.shape[3], extras)


def _run(launches: list[Launch], device: Device, argument: _Attention) -> None:
    for launch in launches:
        device.launch(launch.kernel, launch.grid, launch.threads, [argument], launch.shared)


def _run_forward(q, k, v, bias, out, lse, options, version):
    (given, shape), device = _argument(q, k, bias, options), device_of(q)
    given.q, given.k, given.v, given.out = map(_view, (q, k, v, out))
    given.lse, given.aligned = address(lse), is_aligned(q, k, v, out)
    _run(plan(version, False, shape, device), device, given)


def _run_backward(q, k, v, bias, out, lse, dout, dq, dk, dv, ds, options, version):
    (given, shape), device, xp = _argument(q, k, bias, options), device_of(q), library_of(q)
    r, shift, rest = xp.empty((3, *q.shape[:3]), "float32")
    arrays = (q, k, v, out, dout, dq, dk, dv)
    given.q, given.k, given.v, given.out, given.dout, given.dq, given.dk, given.dv = map(_view, arrays)
    lse = xp.ascontiguousarray(lse)
    given.lse, given.r, given.shift, given.rest = map(address, (lse, r, shift, rest))
    given.ds, given.aligned = address(ds if ds.size else None), is_aligned(*arrays)
    _run(plan(version, True, shape, device), device, given)


forward, backward = operations(library_of, _heads, _run_forward, _run_backward)


def weights(q, k, lse, bias, *, mask=None, is_causal=False, scale):
    """Return the probabilities (B, H, N, S) before dropout, by CuPy's own functions: speed does not matter here."""
    xp = library_of(q)
    scores = scale * (q @ k.swapaxes(-1, -2))
    if bias is not None:
        scores += bias
    hidden, zero = scores.dtype.type(-math.inf), scores.dtype.type(0)
    if mask is not None:
        scores = xp.where(mask, scores, hidden)
    if is_causal:
        scores = xp.where(xp.arange(q.shape[-2])[:, None] >= xp.arange(k.shape[-2]), scores, hidden)
    p = xp.exp(scores - xp.where(lse == -math.inf, zero, scores.max(axis=-1, initial=hidden))[..., None])
    total = p.sum(axis=-1, keepdims=True)
    return p / xp.where(total == 0, scores.dtype.type(1), total)
