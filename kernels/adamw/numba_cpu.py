"""One step of Adam or AdamW for all parameters of one dtype, in one call.

| version | what it changes, and gains                                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| v1      | one parameter after the other, one element after the other, in the words of the formula                |
| v2      | vectors, each element read and written once; work is cut in chunks of `CHUNK` elements, which may span |
|         | several small parameters, and shared among threads                                                     |

Parameters and gradients lie wherever they are: `table` (T, 5) says of each the ids of its two arrays, as Python's `id`
gives them, the element at which its moments begin in the flat arrays m and v, its size, and its row of `settings`.
A gradient's id of 0 stands for none: nothing changes then. `settings` (G, 7) are keep, l2, b1, b2, rate, c2 and eps in

    g' = g + l2 p,  m <- b1 m + (1 - b1) g',  v <- b2 v + (1 - b2) g'^2,  p <- keep p - rate m / (sqrt(c2 v) + eps)
"""

import ctypes

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import config
from numba.extending import intrinsic

from ..cpu import threads as pool
from ..cpu.compiler import body, entry, exact
from ..cpu.threads import parallel

CHUNK = 8192
_SERIAL = 20_000  # elements below which waking another thread costs more than it saves
_DATA = object.__basicsize__  # where in an array object NumPy keeps the address of its elements: after Python's head


# Arrays by their ids ------------------------------------------------------------------------------------------------


@intrinsic
def _pointer(typing_context, address):
    def codegen(context, builder, signature, values):
        return builder.inttoptr(values[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.intp), codegen


@body
def _compiled_elements(identity, size, dtype):
    """The elements of the contiguous array object with this id."""
    address = carray(_pointer(identity + _DATA), (1,), np.int64)[0]
    return carray(_pointer(address), (size,), dtype)


def _plain_elements(identity, size, dtype):
    address = ctypes.c_ssize_t.from_address(int(identity) + _DATA).value
    return np.frombuffer((ctypes.c_char * int(size * dtype.itemsize)).from_address(address), dtype)


_elements = _plain_elements if config.DISABLE_JIT else _compiled_elements


@exact
def _mixed(old, new, keep, fresh):
    """In this order: new + keep (old - new), to which a compiler may come, would lose digits of a small average."""
    return keep * old + fresh * new


# v1 -----------------------------------------------------------------------------------------------------------------


@entry
def _step_1(table, settings, m, v, team):
    for t in range(table.shape[0]):
        p_id, g_id, start, size, group = table[t, 0], table[t, 1], table[t, 2], table[t, 3], table[t, 4]
        if g_id != 0:
            keep, l2, b1, b2 = settings[group, 0], settings[group, 1], settings[group, 2], settings[group, 3]
            rate, c2, eps = settings[group, 4], settings[group, 5], settings[group, 6]
            p, g = _elements(p_id, size, m.dtype), _elements(g_id, size, m.dtype)
            for j in range(size):
                k = start + j
                slope = g[j] + l2 * p[j] if l2 != 0 else g[j]
                m[k] = _mixed(m[k], slope, b1, 1 - b1)
                v[k] = _mixed(v[k], slope * slope, b2, 1 - b2)
                p[j] = keep * p[j] - rate * m[k] / (np.sqrt(c2 * v[k]) + eps)


# v2 -----------------------------------------------------------------------------------------------------------------


@body
def _update(p, g, m, v, setting):
    """All of the formula for a run of elements."""
    real = m.dtype.type
    keep, l2, b1, b2 = real(setting[0]), real(setting[1]), real(setting[2]), real(setting[3])
    new1, new2 = real(1 - setting[2]), real(1 - setting[3])
    rate, c2, eps = real(setting[4]), real(setting[5]), real(setting[6])
    coupled = setting[1] != 0
    for j in range(p.size):
        slope = g[j] + l2 * p[j] if coupled else g[j]
        m_new, v_new = _mixed(m[j], slope, b1, new1), _mixed(v[j], slope * slope, b2, new2)
        m[j], v[j] = m_new, v_new
        p[j] = keep * p[j] - rate * m_new / (np.sqrt(c2 * v_new) + eps)


@body
def _step_chunk(chunk, chunks, table, settings, m, v):
    for t in range(table.shape[0]):
        start, size = table[t, 2], table[t, 3]
        first, last = max(chunk * CHUNK, start), min(chunk * CHUNK + CHUNK, start + size)
        if table[t, 1] != 0 and first < last:
            p = _elements(table[t, 0], size, m.dtype)[first - start : last - start]
            g = _elements(table[t, 1], size, m.dtype)[first - start : last - start]
            _update(p, g, m[first:last], v[first:last], settings[table[t, 4]])


@entry
def _step_2(table, settings, m, v, team):
    chunks = (m.size + CHUNK - 1) // CHUNK
    parallel(_step_chunk, chunks, team, (table, settings, m, v))


VERSIONS = {1: _step_1, 2: _step_2}


# Launcher -----------------------------------------------------------------------------------------------------------


def step(table, settings, m, v, *, version):
    """Change the parameters and their moments in place. There is no backward: an optimizer is not on the tape."""
    VERSIONS[version](table, settings, m, v, pool.team(m.size > _SERIAL))
    return ()
