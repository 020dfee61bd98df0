"""Arrays at addresses, in compiled code: a table holds addresses, and kernels take arrays."""

import ctypes

import numpy as np
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

_KINDS = {types.float32: np.float32, types.int64: np.int64, types.boolean: np.bool_}


def _array_at(number, layout):
    """Return an intrinsic (address, shape, strides) -> array of `number`; its memory belongs to somebody else."""
    if config.DISABLE_JIT:

        def plain(address, shape, strides):
            size = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True) if n) if min(shape) else 0
            memory = (ctypes.c_char * (size + np.dtype(_KINDS[number]).itemsize)).from_address(address)
            return np.ndarray(shape, _KINDS[number], memory, 0, strides)

        return plain

    @intrinsic
    def array_at(typing_context, address, shape, strides):
        kind = types.Array(number, len(shape), layout)

        def codegen(context, builder, signature, values):
            array = context.make_array(kind)(context, builder)
            lengths = cgutils.unpack_tuple(builder, values[1], len(shape))
            steps = cgutils.unpack_tuple(builder, values[2], len(shape))
            context.populate_array(
                array,
                data=builder.inttoptr(values[0], array.data.type),
                shape=cgutils.pack_array(builder, lengths),
                strides=cgutils.pack_array(builder, steps),
                itemsize=context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(number))),
                meminfo=None,
            )
            return array._getvalue()

        return kind(types.intp, shape, strides), codegen

    return array_at


floats_at = _array_at(types.float32, "A")  # any strides, in bytes
dense_at = _array_at(types.float32, "C")  # contiguous
ids_at = _array_at(types.int64, "C")
flags_at = _array_at(types.boolean, "A")
