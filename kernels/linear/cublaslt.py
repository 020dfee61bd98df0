"""Matrix products on NVIDIA GPUs by cuBLASLt, and with them the linear map.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | one product for the output, with the bias in its epilogue, one for dx, and one for dW, with db in its  |
|         | epilogue                                                                                               |

CuPy's own products cannot be captured in a CUDA graph, copy strided operands and do not support bfloat16. This layer
has its own handle and workspace for each device, takes transposes as flags and batches by their stride, sums in float32
(float64 for float64), and launches on the current stream.

cuBLASLt is column-major: it sees a row-major matrix (R, C) as a (C, R) one, so it is asked for D^T = B^T A^T.
"""

import ctypes
import functools
import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..cuda.device import address, as_matrix, dense, device_of, library_of
from . import lt
from .narrow import narrowed

_WORKSPACE = 32 << 20  # bytes; cuBLAS's own choice for Hopper
_BIAS_ALIGNMENT = 16  # bytes; epilogues read and write a bias in runs of 16 bytes
_TYPES = {"float32": lt.FLOAT32, "float16": lt.FLOAT16, "bfloat16": lt.BFLOAT16, "float64": lt.FLOAT64}


# Descriptions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """The layout of a stack of matrices in memory: row-major with `ld` elements between rows, or transposed."""

    transposed: bool
    ld: int
    stride: int  # between the matrices of the stack


@dataclass(frozen=True)
class Product:
    """A kind of product, d (batch, m, n) = a (batch, m, k) b (batch, k, n), for which descriptors are made once."""

    m: int
    n: int
    k: int
    batch: int
    dtype: str  # of a and b
    out: str  # the dtype of d, and of a bias
    a: Operand
    b: Operand
    d: Operand
    epilogue: str = "none"
    tf32: bool = False
    alignment: tuple[int, int, int] = (256, 256, 256)  # bytes, of a, b and d; an algorithm may rely on it


def operand_of(array: Any) -> Operand | None:
    """Return the layout of an array's matrices; None if cuBLASLt cannot read it."""
    size, (rows, columns) = array.itemsize, array.shape[-2:]
    down, right = array.strides[-2] // size, array.strides[-1] // size
    stride = _one_stride(array)
    if stride is None:
        return None
    if (right == 1 or columns == 1) and (down >= columns or rows == 1):
        return Operand(False, max(down, columns), stride)
    if (down == 1 or rows == 1) and right >= rows:
        return Operand(True, right, stride)
    return None


def _one_stride(array: Any) -> int | None:
    """Return the step between the matrices of a stack, in elements; None if the leading axes have no common one."""
    axes = [(n, s // array.itemsize) for n, s in zip(array.shape[:-2], array.strides[:-2], strict=True) if n > 1]
    for (_, outer), (n, inner) in itertools.pairwise(axes):
        if outer != n * inner:
            return None
    return axes[-1][1] if axes else 0


class _Descriptors:
    """cuBLASLt's descriptors for one kind of product, and the algorithm that it chose.

    `bias` is the operand of the epilogue: cuBLASLt reads from its address how it is aligned.
    """

    def __init__(self, handle: int, p: Product, bias: Any) -> None:
        self._lt = lt.library()
        double = p.dtype == "float64"
        compute = lt.COMPUTE_TF32 if p.tf32 else lt.COMPUTE_FLOAT64 if double else lt.COMPUTE_FLOAT32
        # The first operand is b, the second a: d^T = b^T a^T.
        how = {"TRANSA": int(p.b.transposed), "TRANSB": int(p.a.transposed), "EPILOGUE": lt.EPILOGUES[p.epilogue]}
        self.matmul = self._lt.description(compute, lt.FLOAT64 if double else lt.FLOAT32, **how)
        self.set_bias(bias)
        self.b = self._layout(p.dtype, p.k, p.n, p.b, p.batch)
        self.a = self._layout(p.dtype, p.m, p.k, p.a, p.batch)
        self.d = self._layout(p.out, p.m, p.n, p.d, p.batch)
        scalar = ctypes.c_double if double else ctypes.c_float
        self.one, self.zero = scalar(1), scalar(0)
        of_a, of_b, of_d = p.alignment
        wishes = {"MAX_WORKSPACE_BYTES": _WORKSPACE, "MIN_ALIGNMENT_A_BYTES": of_b, "MIN_ALIGNMENT_B_BYTES": of_a}
        wishes |= {"MIN_ALIGNMENT_C_BYTES": of_d, "MIN_ALIGNMENT_D_BYTES": of_d}
        # Parts of a sum over k may be added up in float32 only, not in the 16 bits of the result.
        wishes["REDUCTION_SCHEME_MASK"] = lt.REDUCE_IN_COMPUTE_TYPE
        layouts = (self.b, self.a, self.d, self.d)
        self.algorithm = self._lt.algorithm(handle, self.matmul, layouts, **wishes)  # None if there is none

    def set_bias(self, bias: Any) -> None:
        if bias is not None:
            self._lt.describe(self.matmul, BIAS_POINTER=address(bias))

    def _layout(self, dtype: str, rows: int, columns: int, operand: Operand, batch: int) -> int:
        stored = (columns, rows) if operand.transposed else (rows, columns)  # row-major, in memory
        many = {"BATCH_COUNT": batch, "STRIDED_BATCH_OFFSET": operand.stride}
        return self._lt.layout(_TYPES[dtype], stored[1], stored[0], operand.ld, **many)


@functools.cache
def _handle(device: int) -> int:
    return lt.library().create()


@functools.cache
def _workspace(device: int, xp: Any) -> Any:
    return xp.empty(_WORKSPACE, "uint8")


_made: OrderedDict[tuple[int, Product], _Descriptors] = OrderedDict()  # the last kinds of products
_MOST = 1024


def _descriptors(device: int, product: Product, bias: Any) -> _Descriptors:
    key = device, product
    found = _made.get(key)
    if found is None:
        found = _made[key] = _Descriptors(_handle(device), product, bias)
        if len(_made) > _MOST:
            _made.popitem(last=False)
    else:
        found.set_bias(bias)
    return found


def forget() -> None:
    """Forget handles, workspaces and descriptors, as tests with another library must."""
    _handle.cache_clear()
    _workspace.cache_clear()
    _made.clear()


def run(product: Product, a: Any, b: Any, d: Any, bias: Any = None) -> None:
    """Launch a product. The epilogue adds `bias`, or writes the bias's gradient to it.

    For some sizes and alignments cuBLASLt has no algorithm with a bias. Then it is added, or summed, separately. A bias
    that is not aligned to 16 bytes is copied.
    """
    if bias is not None and address(bias) % _BIAS_ALIGNMENT:
        aligned = bias.copy()
        run(product, a, b, d, aligned)
        if product.epilogue == "bias_gradient":
            bias[...] = aligned
        return
    xp, device = library_of(d), device_of(d)
    made = _descriptors(device.number, product, bias)
    if made.algorithm is None:
        _run_in_parts(product, a, b, d, bias)
        return
    one, zero = ctypes.addressof(made.one), ctypes.addressof(made.zero)
    operands = (one, address(b), made.b, address(a), made.a, zero, address(d), made.d, address(d), made.d)
    space = _workspace(device.number, xp)
    where = (address(space), _WORKSPACE, xp.cuda.get_current_stream().ptr)
    lt.library().multiply(_handle(device.number), made.matmul, *operands, made.algorithm, *where)


def _run_in_parts(product: Product, a: Any, b: Any, d: Any, bias: Any) -> None:
    """Compute a product for which there is no algorithm with its epilogue, or with a result in float32."""
    if product.epilogue in ("bias", "bias_gradient"):
        run(replace(product, epilogue="none"), a, b, d)
        if product.epilogue == "bias":
            d += bias
        else:
            bias[...] = _row_sums(a)
    elif product.out != product.dtype and product.epilogue == "none":
        narrow = library_of(d).empty(d.shape, a.dtype)
        multiply(a, b, narrow)
        d[...] = narrow
    else:
        raise RuntimeError(f"cuBLASLt knows no algorithm for {product}; use_kernels('numpy') does without it")


# Products ------------------------------------------------------------------------------------------------------------


tf32_allowed = False  # whether products in float32 may round their operands to TF32


def product_of(a: Any, b: Any, d: Any, epilogue: str = "none", tf32: bool | None = None) -> Product | None:
    """Return the kind of the product d = a b; None if an operand has a layout that needs a copy."""
    if a.dtype != b.dtype or d.dtype not in (a.dtype, np.float32) or (d.dtype != a.dtype and a.itemsize != 2):
        raise TypeError(
            f"a product has operands of {a.dtype} and {b.dtype} for {d.dtype}; they must be equal, but for a result in "
            "float32 of operands of 16 bits"
        )
    tf32 = a.dtype == np.float32 and (tf32_allowed if tf32 is None else tf32)
    of_a, of_b, of_d = (operand_of(x) for x in (a, b, d))
    if of_a is None or of_b is None or of_d is None:
        return None
    (m, n), k, batch = d.shape[-2:], a.shape[-1], math.prod(d.shape[:-2])
    alignment = (_alignment(a), _alignment(b), _alignment(d))
    return Product(m, n, k, batch, a.dtype.name, d.dtype.name, of_a, of_b, of_d, epilogue, tf32, alignment)


def _alignment(array: Any) -> int:
    """Return the largest power of two, up to 256, that divides an array's address."""
    return min(256, address(array) & -address(array))


def matmul(x: Any, y: Any, tf32: bool | None = None) -> Any:
    """Multiply x (..., M, K) and y (..., K, N), with broadcast leading axes, and if possible without copies."""
    xp = library_of(x)
    lead = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    d = xp.empty((*lead, x.shape[-2], y.shape[-1]), x.dtype)
    if d.size == 0 or x.shape[-1] == 0:
        d[...] = 0
        return d
    left, right = (xp.broadcast_to(a, (*lead, *a.shape[-2:])) for a in (x, y))
    product = product_of(left, right, d, tf32=tf32)
    if product is None:
        left, right = (a if operand_of(a) is not None else xp.ascontiguousarray(a) for a in (left, right))
        product = product_of(left, right, d, tf32=tf32)
    assert product is not None
    run(product, left, right, d)
    return d


def _matrix(x: Any) -> Any:
    """Reshape x (..., C) to a matrix (R, C), if possible without a copy."""
    rows = as_matrix(x)
    return rows if operand_of(rows) is not None else library_of(x).ascontiguousarray(rows)


def has_algorithm(a: Any, b: Any, d: Any, epilogue: str = "none", bias: Any = None) -> bool:
    """Whether cuBLASLt has an algorithm for a product with its epilogue. Else the epilogue is computed separately.

    Benchmarks show this beside their times.
    """
    product = product_of(a, b, d, epilogue)
    return product is not None and _descriptors(device_of(d).number, product, bias).algorithm is not None


def multiply(a: Any, b: Any, d: Any, epilogue: str = "none", bias: Any = None) -> Any:
    """Write the product a (M, K) b (K, N) to d (M, N), with an epilogue as in `run`; return d."""
    if a.size == 0 or b.size == 0:  # the sums are empty
        d[...] = bias if epilogue == "bias" else 0
        if epilogue == "bias_gradient":
            bias[...] = _row_sums(a)
        return d
    product = product_of(a, b, d, epilogue)
    assert product is not None
    run(product, a, b, d, bias)
    return d


def _row_sums(a: Any) -> Any:
    """Return the sums of the rows of a matrix, in float32 where it is narrower."""
    return a.sum(axis=1, dtype="float32" if a.dtype.itemsize == 2 else a.dtype)


# Launchers -----------------------------------------------------------------------------------------------------------


def refuses(inputs: Any, params: Any) -> str | None:
    """Return the reason why these inputs cannot be served, or None."""
    reason = lt.why_not()
    if reason is None and inputs["x"].dtype.name == "bfloat16" and device_of(inputs["x"]).arch < 80:
        arch = device_of(inputs["x"]).arch / 10
        reason = f"bfloat16 needs compute capability 8.0, and the device has {arch}; use float16"
    return reason


def _forward_1(x, weight, bias):
    y = library_of(x).empty((*x.shape[:-1], weight.shape[0]), x.dtype)
    rows, narrow = as_matrix(y), narrowed(weight, x.dtype)
    added = None if bias is None else dense(narrowed(bias, x.dtype))
    multiply(_matrix(x), _matrix(narrow).T, rows, "none" if bias is None else "bias", added)
    return y, narrow


def _backward_1(dy, x, weight, narrow, needs):
    xp, upstream, rows = library_of(x), _matrix(dy), _matrix(x)
    dx = dweight = db = None
    # y = x @ weight.T + bias
    if needs[0]:
        dx = xp.empty(x.shape, x.dtype)
        multiply(upstream, _matrix(narrow), as_matrix(dx))
    if needs[1]:
        dweight = xp.empty(weight.shape, weight.dtype)
        db = xp.empty(weight.shape[0], weight.dtype) if needs[2] else None
        multiply(upstream.T, rows, dweight, "bias_gradient" if needs[2] else "none", db)
    elif needs[2]:
        db = _row_sums(upstream.T).astype(weight.dtype)
    return dx, dweight, db


VERSIONS = {1: (_forward_1, _backward_1)}


def forward(x, weight, bias, *, version):
    """Map x (..., in), weight (out, in) and bias (out,), or None, to y (..., out) and the weight in the dtype of x.

    Beside x in 16 bits, weight and bias may be float32.
    """
    return VERSIONS[version][0](x, weight, bias)


def backward(dy, x, weight, narrow, *, needs, version):
    """Map dy (..., out) to dx (..., in), and to dweight (out, in) and db (out,) in the dtype of the weight."""
    return VERSIONS[version][1](dy, x, weight, narrow, needs)
