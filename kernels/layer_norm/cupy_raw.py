"""Layer norm of rows, or of the sum of two, in CUDA C++, forward and backward.

| version | what it changes, and gains                                                                                |
|---------|-----------------------------------------------------------------------------------------------------------|
| v1      | one block for each row, written like the formula, which reads it three times; the gradients of weight and |
|         | bias in a pass of their own, one thread for each column                                                   |
| v2      | one warp for each row, which it reads once, 16 bytes at a time, into registers, so there are no barriers; |
|         | the gradients of weight and bias in the same pass, each warp with its own part                            |

x (R, C), weight and bias (C,), mean and rstd (R,) in float32; the leading axes are flattened into R. v2 serves rows of
up to 1024 columns that are aligned to 16 bytes, and leaves others to v1. Parts are added in an order that depends on R
only.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

from ..cuda.device import CTYPES, Kernel, address, dense, device_of, is_aligned, library_of
from ..cuda.rows import add_parts, itemsize_of, parts_of, spread, spreads
from .operations import operations

_SOURCE = "layer_norm/layer_norm.cu"
_WARPS, _THREADS = 4, 128
_SCRATCH = 4 * 32  # bytes of a reduction over a block


class _Forward(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("x", "residual", "weight", "bias", "total", "y", "mean", "rstd")),
        *((n, ctypes.c_int) for n in ("rows", "columns")),
        ("eps", ctypes.c_float),
    )


class _Backward(ctypes.Structure):
    _pointers = ("dy", "dtotal", "x", "weight", "mean", "rstd", "dx", "dweight", "dbias", "parts")
    _fields_ = (*((n, ctypes.c_void_p) for n in _pointers), ("rows", ctypes.c_int), ("columns", ctypes.c_int))


def _kernel(name: str, *arguments: Any) -> Kernel:
    return Kernel(_SOURCE, f"{name}<{', '.join(map(str, arguments))}>")


def kernels() -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel, and the most registers that it may use."""
    for ctype in CTYPES.values():
        for name in ("layer_norm_forward_1", "layer_norm_dx_1", "layer_norm_dweight_1", "sum_parts"):
            yield _kernel(name, ctype), 64
        for v, p in spreads(itemsize_of(ctype)):
            yield _kernel("layer_norm_forward_2", ctype, v, p), 128
            yield _kernel("layer_norm_backward_2", ctype, v, p), 128 if v * p <= 24 else 255


# Versions ------------------------------------------------------------------------------------------------------------


def forward_1(device, ctype, given, layout):
    device.launch(_kernel("layer_norm_forward_1", ctype), (given.rows,), _THREADS, [given], _SCRATCH)


def backward_1(device, ctype, given, layout, *sums):
    device.launch(_kernel("layer_norm_dx_1", ctype), (given.rows,), _THREADS, [given], _SCRATCH)
    device.launch(_kernel("layer_norm_dweight_1", ctype), (-(-given.columns // _THREADS),), _THREADS, [given])


def forward_2(device, ctype, given, layout):
    if layout is None:
        return forward_1(device, ctype, given, layout)
    device.launch(_kernel("layer_norm_forward_2", ctype, *layout), (-(-given.rows // _WARPS),), _THREADS, [given])


def backward_2(device, ctype, given, layout, parts, dweight, dbias):
    if layout is None:
        return backward_1(device, ctype, given, layout)
    shared = 4 * _THREADS * layout[0]
    device.launch(_kernel("layer_norm_backward_2", ctype, *layout), parts.shape[:1], _THREADS, [given], shared)
    add_parts(device, _SOURCE, ctype, parts, dweight, dbias)


VERSIONS = {1: (forward_1, backward_1), 2: (forward_2, backward_2)}


# Launchers -----------------------------------------------------------------------------------------------------------


def _rows(array: Any) -> Any:
    return dense(array.reshape(-1, array.shape[-1]))


def normalize(x: Any, residual: Any, weight: Any, bias: Any, eps: float, version: int) -> tuple[Any, ...]:
    """Return x + residual (..., C), or x if residual is None, its layer norm y (..., C), mean and rstd (...)."""
    xp, rows, weight, bias = library_of(x), _rows(x), dense(weight), dense(bias)
    other = None if residual is None else _rows(residual)
    total = rows if other is None else xp.empty_like(rows)
    y, (mean, rstd) = xp.empty_like(rows), xp.empty((2, rows.shape[0]), "float32")
    arrays = (rows, other, weight, bias, total, y, mean, rstd)
    given = _Forward(*map(address, arrays), *rows.shape, eps)
    aligned = is_aligned(*(a for a in arrays[:-2] if a is not None))
    layout = spread(rows.shape[1], rows.itemsize, aligned)
    if rows.size:
        VERSIONS[version][0](device_of(x), CTYPES[x.dtype.name], given, layout)
    shape = x.shape
    return (
        x if residual is None else total.reshape(shape),
        y.reshape(shape),
        *(a.reshape(shape[:-1]) for a in (mean, rstd)),
    )


def normalize_backward(
    dy: Any, dtotal: Any, x: Any, weight: Any, mean: Any, rstd: Any, version: int
) -> tuple[Any, ...]:
    """Map dy (..., C) and dtotal (..., C), or None, to dx (..., C), dweight and dbias (C,)."""
    xp, rows, upstream, weight = library_of(x), _rows(x), _rows(dy), dense(weight)
    before = None if dtotal is None else _rows(dtotal)
    dx, dweight, dbias = xp.empty_like(rows), xp.empty_like(weight), xp.empty_like(weight)
    parts = xp.empty((parts_of(rows.shape[0], _WARPS), 2, rows.shape[1]), "float32")
    if rows.size:
        flat = (dense(mean.reshape(-1)), dense(rstd.reshape(-1)))
        arrays = (upstream, before, rows, weight, *flat, dx, dweight, dbias, parts)
        given = _Backward(*map(address, arrays), *rows.shape)
        aligned = is_aligned(*(a for a in (upstream, before, rows, weight, dx) if a is not None))
        layout = spread(rows.shape[1], rows.itemsize, aligned)
        VERSIONS[version][1](device_of(x), CTYPES[x.dtype.name], given, layout, parts, dweight, dbias)
    else:
        dweight[...], dbias[...] = 0, 0
    return dx.reshape(x.shape), dweight, dbias


forward, backward, add_forward, add_backward = operations(normalize, normalize_backward)
