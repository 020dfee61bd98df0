"""Arrays by their addresses, for kernels whose arrays may lie anywhere in memory, in any number."""

import ctypes

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import config
from numba.extending import intrinsic

from .compiler import body

_BUFFER = ctypes.c_char * 0  # of any size: only its address is asked for


def address_of(array):
    """Return where a contiguous, writeable array begins, 0 for None. (`array.ctypes.data` takes four times as long.)"""
    return 0 if array is None else ctypes.addressof(_BUFFER.from_buffer(array))


# Compiled code ------------------------------------------------------------------------------------------------------


@intrinsic
def _pointer(typing_context, address):
    def codegen(context, builder, signature, values):
        return builder.inttoptr(values[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.intp), codegen


@body
def _compiled_elements(address, size, dtype):
    """Return the elements of the contiguous array that begins at this address."""
    return carray(_pointer(address), (size,), dtype)


def _plain_elements(address, size, dtype):
    return np.frombuffer((ctypes.c_char * int(size * np.dtype(dtype).itemsize)).from_address(int(address)), dtype)


elements_at = _plain_elements if config.DISABLE_JIT else _compiled_elements
