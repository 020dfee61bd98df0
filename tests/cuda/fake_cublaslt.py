"""A stand-in for the bindings of cuBLASLt: descriptors as dictionaries, products by NumPy on the same memory.

It follows cuBLASLt's documentation and its terms: matrices are column-major, m and n are the rows and columns of D, the
bias has m elements, and the bias gradient of B has n.
"""

import ctypes
import itertools
from enum import IntEnum
from typing import Any

import ml_dtypes
import numpy as np

MatmulDescAttribute = IntEnum(
    "MatmulDescAttribute", ["TRANSA", "TRANSB", "EPILOGUE", "BIAS_POINTER", "EPILOGUE_AUX_POINTER", "EPILOGUE_AUX_LD"]
)
MatrixLayoutAttribute = IntEnum("MatrixLayoutAttribute", ["BATCH_COUNT", "STRIDED_BATCH_OFFSET"])
MatmulPreferenceAttribute = IntEnum(
    "MatmulPreferenceAttribute", ["MAX_WORKSPACE_BYTES", *(f"MIN_ALIGNMENT_{x}_BYTES" for x in "ABCD")]
)
matmul_heuristic_result_dtype = np.dtype("V64")
_DTYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float64), 2: np.dtype(np.float16), 14: np.dtype(ml_dtypes.bfloat16)}
_BIAS, _GELU, _AUX, _DGELU, _DGELU_BGRAD, _BGRADB = 4, 32, 128, 192, 208, 512

_objects: dict[int, dict[str, Any]] = {}
_names = itertools.count(1)


def _new(**fields: Any) -> int:
    name = next(_names)
    _objects[name] = fields
    return name


class cuBLASLtError(Exception):
    pass


def create() -> int:
    return _new()


def matmul_desc_create(compute_type: int, scale_type: int) -> int:
    return _new(compute=compute_type)


def matrix_layout_create(kind: int, rows: int, cols: int, ld: int) -> int:
    assert ld >= rows, "a leading dimension is at least the number of rows"
    return _new(dtype=_DTYPES[kind], rows=rows, cols=cols, ld=ld)


def matmul_preference_create() -> int:
    return _new()


def matmul_preference_destroy(preference: int) -> None:
    del _objects[preference]


def get_matmul_desc_attribute_dtype(attribute: int) -> Any:
    return np.uint64 if attribute in (4, 5, 6) else np.int32


def get_matrix_layout_attribute_dtype(attribute: int) -> Any:
    return np.int32 if attribute == MatrixLayoutAttribute.BATCH_COUNT else np.int64


def get_matmul_preference_attribute_dtype(attribute: int) -> Any:
    return np.uint64


def _set(target: int, attribute: IntEnum, buffer: int, size: int) -> None:
    _objects[target][attribute.name] = int.from_bytes(ctypes.string_at(buffer, size), "little", signed=True)


matmul_desc_set_attribute = matrix_layout_set_attribute = matmul_preference_set_attribute = _set


def matmul_algo_get_heuristic(*arguments: int) -> None:
    ctypes.c_int.from_address(arguments[-1]).value = 1


def _stack(pointer: int, layout: dict[str, Any]) -> np.ndarray:
    """Return the matrices (batch, rows, cols) of a layout as a view of their memory."""
    size, count, offset = layout["dtype"].itemsize, layout["BATCH_COUNT"], layout["STRIDED_BATCH_OFFSET"]
    length = (count - 1) * offset + (layout["cols"] - 1) * layout["ld"] + layout["rows"]
    memory = np.frombuffer((ctypes.c_char * (length * size)).from_address(pointer), layout["dtype"])
    shape, strides = (count, layout["rows"], layout["cols"]), (offset * size, size, layout["ld"] * size)
    return np.lib.stride_tricks.as_strided(memory, shape, strides)


def _vector(pointer: int, size: int, dtype: Any) -> np.ndarray:
    return np.frombuffer((ctypes.c_char * (size * dtype.itemsize)).from_address(pointer), dtype)


def _gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return GELU in the tanh form, and its slope."""
    root = np.sqrt(2 / np.pi)
    t = np.tanh(root * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x)


def matmul(handle: int, desc: int, *operands: int) -> None:
    """d = a b with the epilogue of `desc`.

    `operands` are alpha, a, adesc, b, bdesc, beta, c, cdesc, d, ddesc, algo, workspace, workspace_size and stream.
    """
    _, a, adesc, b, bdesc, _, _, _, d, ddesc, *_ = operands
    how, dtype = _objects[desc], _objects[ddesc]["dtype"]
    wide = np.float64 if dtype == np.float64 else np.float32
    left, right = (_stack(p, _objects[layout]).astype(wide) for p, layout in ((a, adesc), (b, bdesc)))
    left = left.swapaxes(1, 2) if how["TRANSA"] else left
    right = right.swapaxes(1, 2) if how["TRANSB"] else right
    result, epilogue = left @ right, how["EPILOGUE"]
    target = _stack(d, _objects[ddesc])
    assert result.shape == target.shape
    _, m, n = result.shape
    if epilogue == _BGRADB:
        _vector(how["BIAS_POINTER"], n, dtype)[:] = right.sum(axis=(0, 1))
    elif epilogue in (_DGELU, _DGELU_BGRAD):
        result *= _gelu(_aux(how, m, n, dtype).astype(wide))[1]
        if epilogue == _DGELU_BGRAD:
            _vector(how["BIAS_POINTER"], m, dtype)[:] = result.sum(axis=(0, 2))
    elif epilogue > 1:
        if epilogue & _BIAS:
            result += _vector(how["BIAS_POINTER"], m, dtype).astype(wide)[:, None]
        if epilogue & _AUX:
            _aux(how, m, n, dtype)[...] = result[0]
        if epilogue & _GELU:
            result = _gelu(result)[0]
    target[...] = result


def _aux(how: dict[str, Any], m: int, n: int, dtype: Any) -> np.ndarray:
    layout = {"dtype": dtype, "rows": m, "cols": n, "ld": how["EPILOGUE_AUX_LD"], "BATCH_COUNT": 1}
    return _stack(how["EPILOGUE_AUX_POINTER"], layout | {"STRIDED_BATCH_OFFSET": 0})[0]
