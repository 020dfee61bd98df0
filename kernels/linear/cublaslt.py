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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..cuda.device import address, dense, device_of, library_of

_WORKSPACE = 32 << 20  # bytes; cuBLAS's own choice for Hopper
# cudaDataType, then cublasComputeType and the cudaDataType of alpha and beta
_TYPES = {"float32": (0, 68, 0), "float16": (2, 68, 0), "bfloat16": (14, 68, 0), "float64": (1, 70, 1)}
_TF32 = 77  # the compute type of float32 operands that are rounded to 10 bits
EPILOGUES = {  # cublasLtEpilogue_t by name
    "none": 1,
    "bias": 4,
    "gelu": 32,
    "gelu_bias": 36,
    "gelu_aux": 160,
    "gelu_aux_bias": 164,
    "dgelu": 192,
    "dgelu_bias_gradient": 208,
    "bias_gradient": 512,  # of the left operand, summed over the rows of the product
}


class Unavailable(RuntimeError):
    """The bindings of cuBLASLt cannot be loaded."""


@functools.cache
def library() -> Any:
    """Return the bindings of cuBLASLt; raise Unavailable, with the reason, if they do not load."""
    try:
        from nvmath.bindings import cublasLt

        cublasLt.get_version()  # the import alone does not load the library
    except Exception as error:  # loading libraries fails in many ways
        raise Unavailable(f"cuBLASLt, or nvmath-python, which binds it, does not load ({error})") from error
    return cublasLt


@functools.cache
def is_available() -> bool:
    """Whether cuBLASLt loads; tried only once."""
    try:
        library()
    except Unavailable:
        return False
    return True


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
    dtype: str
    a: Operand
    b: Operand
    d: Operand
    epilogue: str = "none"
    tf32: bool = False
    aux_ld: int = 0
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
    """cuBLASLt's descriptors for one kind of product, and the algorithm that it chose."""

    def __init__(self, handle: int, p: Product) -> None:
        lt = self._lt = library()
        data, compute, scale = _TYPES[p.dtype]
        self.matmul = lt.matmul_desc_create(_TF32 if p.tf32 else compute, scale)
        attribute = lt.MatmulDescAttribute
        # The first operand is b, the second a: d^T = b^T a^T.
        self._set(attribute.TRANSA, int(p.b.transposed))
        self._set(attribute.TRANSB, int(p.a.transposed))
        self._set(attribute.EPILOGUE, EPILOGUES[p.epilogue])
        if p.aux_ld:
            self._set(attribute.EPILOGUE_AUX_LD, p.aux_ld)
        self.b = self._layout(data, p.k, p.n, p.b, p.batch)
        self.a = self._layout(data, p.m, p.k, p.a, p.batch)
        self.d = self._layout(data, p.m, p.n, p.d, p.batch)
        scalar = ctypes.c_double if p.dtype == "float64" else ctypes.c_float
        self.one, self.zero = scalar(1), scalar(0)
        self.algorithm = self._chosen(handle, p.alignment)  # None if there is none for this kind

    def set_pointer(self, name: str, array: Any) -> None:
        self._set(getattr(self._lt.MatmulDescAttribute, name), address(array))

    def _set(self, attribute: Any, value: int) -> None:
        buffer = np.array([value], self._lt.get_matmul_desc_attribute_dtype(attribute))
        self._lt.matmul_desc_set_attribute(self.matmul, attribute, buffer.ctypes.data, buffer.nbytes)

    def _layout(self, data: int, rows: int, columns: int, operand: Operand, batch: int) -> int:
        lt = self._lt
        stored = (columns, rows) if operand.transposed else (rows, columns)  # row-major, in memory
        layout = lt.matrix_layout_create(data, stored[1], stored[0], operand.ld)
        attribute = lt.MatrixLayoutAttribute
        for name, value in ((attribute.BATCH_COUNT, batch), (attribute.STRIDED_BATCH_OFFSET, operand.stride)):
            buffer = np.array([value], lt.get_matrix_layout_attribute_dtype(name))
            lt.matrix_layout_set_attribute(layout, name, buffer.ctypes.data, buffer.nbytes)
        return int(layout)

    def _chosen(self, handle: int, alignment: tuple[int, int, int]) -> Any:
        lt = self._lt
        preference = lt.matmul_preference_create()
        of_a, of_b, of_d = alignment
        wishes = {"MAX_WORKSPACE_BYTES": _WORKSPACE, "MIN_ALIGNMENT_A_BYTES": of_b, "MIN_ALIGNMENT_B_BYTES": of_a}
        wishes |= {"MIN_ALIGNMENT_C_BYTES": of_d, "MIN_ALIGNMENT_D_BYTES": of_d}
        for name, value in wishes.items():
            attribute = getattr(lt.MatmulPreferenceAttribute, name)
            buffer = np.array([value], lt.get_matmul_preference_attribute_dtype(attribute))
            lt.matmul_preference_set_attribute(preference, attribute, buffer.ctypes.data, buffer.nbytes)
        found, count = np.zeros(1, lt.matmul_heuristic_result_dtype), np.zeros(1, np.int32)
        layouts = (self.b, self.a, self.d, self.d)
        results = (1, found.ctypes.data, count.ctypes.data)
        try:
            lt.matmul_algo_get_heuristic(handle, self.matmul, *layouts, preference, *results)
        except lt.cuBLASLtError:  # its status is "not supported"
            count[0] = 0
        lt.matmul_preference_destroy(preference)
        return found if count[0] else None


@functools.cache
def _handle(device: int) -> int:
    return int(library().create())


@functools.cache
def _workspace(device: int, xp: Any) -> Any:
    return xp.empty(_WORKSPACE, "uint8")


@functools.lru_cache(1024)
def _descriptors(device: int, product: Product) -> _Descriptors:
    return _Descriptors(_handle(device), product)


def run(product: Product, a: Any, b: Any, d: Any, bias: Any = None, aux: Any = None) -> None:
    """Launch a product. The epilogue adds `bias`, or writes the bias's gradient to it; `aux` is its other operand.

    For some sizes and alignments cuBLASLt has no algorithm with a bias. Then it is added, or summed, separately.
    """
    xp, device = library_of(d), device_of(d)
    made = _descriptors(device.number, product)
    if made.algorithm is None:
        if product.epilogue not in ("bias", "bias_gradient"):
            raise RuntimeError(f"cuBLASLt knows no algorithm for {product}; use_kernels('numpy') does without it")
        run(replace(product, epilogue="none"), a, b, d)
        if product.epilogue == "bias":
            d += bias
        else:
            bias[...] = a.astype("float32").sum(axis=1)
        return
    if bias is not None:
        made.set_pointer("BIAS_POINTER", bias)
    if aux is not None:
        made.set_pointer("EPILOGUE_AUX_POINTER", aux)
    one, zero = ctypes.addressof(made.one), ctypes.addressof(made.zero)
    operands = (one, address(b), made.b, address(a), made.a, zero, address(d), made.d, address(d), made.d)
    space = _workspace(device.number, xp)
    where = (address(space), _WORKSPACE, xp.cuda.get_current_stream().ptr)
    library().matmul(_handle(device.number), made.matmul, *operands, made.algorithm.ctypes.data, *where)


# Products ------------------------------------------------------------------------------------------------------------


tf32_allowed = False  # whether products in float32 may round their operands to TF32


def product_of(
    a: Any, b: Any, d: Any, epilogue: str = "none", tf32: bool | None = None, aux: Any = None
) -> Product | None:
    """Return the kind of the product d = a b; None if an operand has a layout that needs a copy."""
    if not a.dtype == b.dtype == d.dtype:
        raise TypeError(f"a product has operands of {a.dtype} and {b.dtype} for {d.dtype}; they must be equal")
    tf32 = d.dtype == np.float32 and (tf32_allowed if tf32 is None else tf32)
    of_a, of_b, of_d = (operand_of(x) for x in (a, b, d))
    if of_a is None or of_b is None or of_d is None:
        return None
    (m, n), k, batch = d.shape[-2:], a.shape[-1], math.prod(d.shape[:-2])
    of_aux = 0 if aux is None else aux.shape[-1]
    alignment = (_alignment(a), _alignment(b), _alignment(d))
    return Product(m, n, k, batch, d.dtype.name, of_a, of_b, of_d, epilogue, tf32, of_aux, alignment)


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
    rows = x.reshape(-1, x.shape[-1])
    return rows if operand_of(rows) is not None else library_of(x).ascontiguousarray(rows)


def _multiply(a: Any, b: Any, d: Any, epilogue: str = "none", bias: Any = None, aux: Any = None) -> Any:
    if a.size == 0 or b.size == 0:  # the sums are empty
        d[...] = bias if epilogue == "bias" else 0
        if epilogue == "bias_gradient":
            bias[...] = a.sum(axis=1)
        return d
    product = product_of(a, b, d, epilogue, aux=aux)
    assert product is not None
    run(product, a, b, d, bias, aux)
    return d


# Launchers -----------------------------------------------------------------------------------------------------------


def refuses(inputs: Any, params: Any) -> str | None:
    """Return the reason why these inputs cannot be served, or None."""
    return None if is_available() else "cuBLASLt, or nvmath-python, which binds it, is not installed"


def _forward_1(x, weight, bias):
    y = library_of(x).empty((*x.shape[:-1], weight.shape[0]), x.dtype)
    rows = y.reshape(-1, y.shape[-1])
    _multiply(
        _matrix(x), _matrix(weight).T, rows, "none" if bias is None else "bias", None if bias is None else dense(bias)
    )
    return y


def _backward_1(dy, x, weight, needs):
    xp, upstream, rows = library_of(x), _matrix(dy), _matrix(x)
    dx = dweight = db = None
    # y = x @ weight.T + bias
    if needs[0]:
        dx = xp.empty(x.shape, x.dtype)
        _multiply(upstream, _matrix(weight), dx.reshape(-1, x.shape[-1]))
    if needs[1]:
        dweight = xp.empty(weight.shape, x.dtype)
        db = xp.empty(weight.shape[0], x.dtype) if needs[2] else None
        _multiply(upstream.T, rows, dweight, "bias_gradient" if needs[2] else "none", db)
    elif needs[2]:
        db = upstream.sum(axis=0)
    return dx, dweight, db


VERSIONS = {1: (_forward_1, _backward_1)}


def forward(x, weight, bias, *, version):
    """Map x (..., in), weight (out, in) and bias (out,), or None, to y (..., out)."""
    return (VERSIONS[version][0](x, weight, bias),)


def backward(dy, x, weight, *, needs, version):
    """Map dy (..., out) to dx (..., in), dweight (out, in) and db (out,)."""
    return VERSIONS[version][1](dy, x, weight, needs)
