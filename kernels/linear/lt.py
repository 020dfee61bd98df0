"""The library cuBLASLt, loaded from where CuPy has it, and called by ctypes.

CuPy's wheels find NVIDIA's libraries by cuda-pathfinder, which they depend on: in the wheels that the extras `cuda12`
and `cuda13` install, in conda, or in a CUDA toolkit. cuBLAS, which CuPy itself loads, needs cuBLASLt, so where there is
one, there is the other.

Numbers and sizes are those of cublasLt.h of CUDA 12 and 13.
"""

import ctypes
import functools
import struct
from typing import Any

FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = 0, 1, 2, 14  # cudaDataType
COMPUTE_FLOAT32, COMPUTE_FLOAT64, COMPUTE_TF32 = 68, 70, 77  # cublasComputeType_t
# Attributes: the number, and the format (of `struct`) of the value.
DESCRIPTION = {  # cublasLtMatmulDescAttributes_t
    "TRANSA": (3, "i"),
    "TRANSB": (4, "i"),
    "EPILOGUE": (7, "I"),
    "BIAS_POINTER": (8, "Q"),
}
LAYOUT = {"BATCH_COUNT": (5, "i"), "STRIDED_BATCH_OFFSET": (6, "q")}  # cublasLtMatrixLayoutAttribute_t
PREFERENCE = {  # cublasLtMatmulPreferenceAttributes_t
    "MAX_WORKSPACE_BYTES": (1, "Q"),
    "REDUCTION_SCHEME_MASK": (3, "I"),
    **{f"MIN_ALIGNMENT_{x}_BYTES": (5 + i, "I") for i, x in enumerate("ABCD")},
}
REDUCE_IN_COMPUTE_TYPE = 2  # CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
EPILOGUES = {  # cublasLtEpilogue_t
    "none": 1,
    "bias": 4,
    "bias_gradient": 512,  # of the left operand of a row-major product, summed over the rows
}
_IMPOSSIBLE = (7, 15)  # CUBLAS_STATUS_INVALID_VALUE, of parameters in conflict, and CUBLAS_STATUS_NOT_SUPPORTED
_ALGORITHM_BYTES = 64  # of cublasLtMatmulAlgo_t


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_ubyte * _ALGORITHM_BYTES),
        ("workspace", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class Unavailable(RuntimeError):
    """cuBLASLt cannot be loaded."""


class LtError(RuntimeError):
    """cuBLASLt refused a call."""


class Library:
    """The functions of cuBLASLt that products need. Objects of the library are known by their addresses.

    Raises
    ------
    Unavailable
        The library lacks a function.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        attribute = (pointer, number, pointer, size)
        signatures: dict[str, tuple[Any, ...]] = {
            "Create": (pointer,),
            "MatmulDescCreate": (pointer, number, number),
            "MatmulDescSetAttribute": attribute,
            "MatrixLayoutCreate": (pointer, number, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
            "MatrixLayoutSetAttribute": attribute,
            "MatmulPreferenceCreate": (pointer,),
            "MatmulPreferenceSetAttribute": attribute,
            "MatmulPreferenceDestroy": (pointer,),
            "MatmulAlgoGetHeuristic": (*(pointer,) * 7, number, pointer, pointer),
            "Matmul": (*(pointer,) * 14, size, pointer),
        }
        try:
            for name, arguments in signatures.items():
                function = getattr(library, f"cublasLt{name}")
                function.argtypes, function.restype = arguments, number
        except AttributeError as error:
            raise Unavailable(f"cuBLASLt lacks a function ({error})") from error
        self._library = library

    def create(self) -> int:
        """Return a new handle, for the current device."""
        return self._made("Create")

    def description(self, compute: int, scale: int, **attributes: int) -> int:
        """Return a new description of a product; `scale` is the dtype of alpha and beta."""
        made = self._made("MatmulDescCreate", compute, scale)
        self.describe(made, **attributes)
        return made

    def describe(self, description: int, **attributes: int) -> None:
        """Set attributes of a description of a product."""
        self._set("MatmulDescSetAttribute", description, DESCRIPTION, attributes)

    def layout(self, dtype: int, rows: int, columns: int, ld: int, **attributes: int) -> int:
        """Return a new layout of column-major matrices."""
        made = self._made("MatrixLayoutCreate", dtype, rows, columns, ld)
        self._set("MatrixLayoutSetAttribute", made, LAYOUT, attributes)
        return made

    def preference(self, **wishes: int) -> int:
        """Return new preferences in the choice of an algorithm."""
        made = self._made("MatmulPreferenceCreate")
        self._set("MatmulPreferenceSetAttribute", made, PREFERENCE, wishes)
        return made

    def algorithm(self, handle: int, description: int, layouts: tuple[int, ...], **wishes: int) -> Any | None:
        """Return the best algorithm, as bytes, for operands in these layouts (a, b, c, d); None if there is none."""
        preference = self.preference(**wishes)
        try:
            found, count = _Found(), ctypes.c_int()
            asked = (handle, description, *layouts, preference, 1, ctypes.byref(found), ctypes.byref(count))
            status = self._library.cublasLtMatmulAlgoGetHeuristic(*asked)
        finally:
            self._library.cublasLtMatmulPreferenceDestroy(preference)
        if status in _IMPOSSIBLE or (status == 0 and (count.value == 0 or found.status)):
            return None
        _check("MatmulAlgoGetHeuristic", status)
        return found.algorithm

    def multiply(self, *arguments: Any) -> None:
        """Launch a product, with the arguments of cublasLtMatmul."""
        _check("Matmul", self._library.cublasLtMatmul(*arguments))

    def _made(self, name: str, *arguments: Any) -> int:
        made = ctypes.c_void_p()
        _check(name, getattr(self._library, f"cublasLt{name}")(ctypes.byref(made), *arguments))
        return made.value or 0

    def _set(self, name: str, target: int, known: dict[str, tuple[int, str]], attributes: dict[str, int]) -> None:
        for attribute, value in attributes.items():
            number, kind = known[attribute]
            data = struct.pack(kind, value)
            status = getattr(self._library, f"cublasLt{name}")(target, number, data, len(data))
            _check(f"{name}({attribute}, {value})", status)


def _check(call: str, status: int) -> None:
    if status:
        raise LtError(f"cublasLt{call} failed with status {status}; CUBLASLT_LOG_LEVEL=5 says more")


@functools.cache
def library() -> Library:
    """Return cuBLASLt; raise Unavailable, with the reason, if it does not load."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        path = load_nvidia_dynamic_lib("cublasLt").abs_path
    except Exception as error:  # the package is missing or finds no library; its errors have no common class
        raise Unavailable(f"cuBLASLt is not found ({type(error).__name__}: {_first_line(error)})") from error
    try:
        return Library(ctypes.CDLL(path))
    except OSError as error:
        raise Unavailable(f"cuBLASLt does not load ({error})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@functools.cache
def why_not() -> str | None:
    """Return the reason why there is no cuBLASLt, None if there is one; tried only once."""
    try:
        library()
    except Unavailable as reason:
        return str(reason)
    return None
