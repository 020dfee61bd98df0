"""Copies and sums of float32 arrays with up to four axes, each as one call of compiled code.

`copy`, `add` and `sum_first` return the calls that do what NumPy does with such arrays, bit for bit.
"""

from typing import Any

import numpy as np

from ..cpu.compiler import entries, entry, exact
from ..cpu.threads import parallel, team
from ..sums import TOGETHER
from .descriptors import Row, assembled, describe, of_array
from .descriptors import copy as copy_rows
from .numba_cpu import one, two

_BASES = np.zeros(1, np.int64)  # places are addresses


@entry
def _copy(row, bases, team):
    parallel(one, row[1], team, (row, bases))


@entry
def _add(row, bases, team):
    parallel(two, row[1], team, (row, bases))


@exact
def _add_row(total, row):
    for j in range(total.size):
        total[j] += row[j]


@exact
def _add_up(x, first, last, total):
    """Set `total` to the sum of some rows, added one after the other."""
    for j in range(total.size):
        total[j] = x[first, j]
    for i in range(first + 1, last):
        _add_row(total, x[i])


@entries("void({0}[:,:], {0}[::1])")
def _sum_first(x, y):
    rows = x.shape[0]
    blocks = max(1, rows // TOGETHER)
    part, rest = np.empty_like(y), np.empty_like(y)
    for block in range(blocks):
        first = block * TOGETHER
        last = min(first + TOGETHER, rows)
        _add_up(x, first, last, part)
        if block == blocks - 1 and last < rows:
            _add_up(x, last, rows, rest)
            _add_row(part, rest)
        if block == 0:
            y[:] = part
        else:
            _add_row(y, part)


def copy(x: Any, y: Any) -> Any:
    """Return the call that sets y to x, which may have to be repeated; None where no kernel does that."""
    return _call(_copy, copy_rows(of_array(x), of_array(y)))


def add(x: Any, y: Any, z: Any) -> Any:
    """Return the call that sets z to x + y; None where no kernel does that."""
    return _call(_add, describe("add", [of_array(x), of_array(y)], {}, [of_array(z)], None))


def sum_first(x: Any, y: Any) -> Any:
    """Return the call that sets y to the sum of x over its first axis, as `kernels.sums.total` adds; else None."""
    rows = x.shape[0]
    is_dense = x[0].flags.c_contiguous and y.flags.carray and x.strides[0] >= x[0].nbytes > x.itemsize
    if not is_dense or not 2 <= rows <= TOGETHER**2 or x.dtype != np.float32 or y.size != x[0].size:
        return None
    matrix = np.lib.stride_tricks.as_strided(x, (rows, y.size), (x.strides[0], x.itemsize))
    return _sum_first[x.dtype].compiled, (matrix, y.reshape(-1))


def _call(function: Any, rows: list[Row] | None) -> Any:
    if rows is None:
        return None
    (row,) = assembled(rows)[0]
    return function.compiled, (row, _BASES, team(rows[0].is_shared))
