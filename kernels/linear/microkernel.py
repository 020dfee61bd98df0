"""The inner loop of every matrix product: a tile of c in registers, generated for the processor in use (`tiles`).

    multiply(a, b, c, accumulate)        c (M, N) = a (M, K) b (K, N), added to c if accumulate
    multiply_add(a, b, bias, c)          c = a b + bias, bias (N,)

| a and b                                 | sums and bias | c                   |
|-----------------------------------------|---------------|---------------------|
| float32, float64                        | as a          | as a                |
| float32                                 | float32       | uint16: bfloat16    |
| uint32: two bfloat16, neighbours in k   | float32       | float32             |
| uint32: two bfloat16, neighbours in k   | float32       | uint16: bfloat16    |

A tile has `rows` rows and 2 vectors of columns. For each k it loads two vectors of a row of b, broadcasts each a[m, k],
and does 2 fused multiply-adds for each row; it reads or writes c only once, at the end. M, N and K may be any number
(K = 0 gives zeros). a may have any strides, so a transposed operand needs no copy; b and c need a contiguous last axis.
Columns beyond the last whole tile are loaded and stored under a mask, and the remaining rows go to smaller tiles, so
nothing outside the arrays is read or written.

The size of a tile depends on the vector registers (`processor`): 14 x 2 with the 32 of AVX-512, 6 x 2 with the 16 of
AVX2, 8 x 2 with the 32 short ones of NEON, for which nothing has been tuned. Each sum
runs over k in order, one fused multiply-add after the other, whatever M, N and the number of threads are. Pairs of
bfloat16 need a processor that sums their products (`bfloat16.NATIVE`). A c of bfloat16 cannot be accumulated.
"""

from functools import cache

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import config
from numba.core.errors import TypingError
from numba.extending import intrinsic

from ..cache import kept_object
from ..cpu import processor
from ..cpu.bfloat16 import rounded, widened
from ..cpu.compiler import body
from .tiles import FORMS, NUMBERS, POINTER, VECTORS, tile_function, tile_module, word, write_tiles

_FORM = FORMS[processor.level()]
VECTOR_BYTES, ROWS = _FORM.vector_bytes, _FORM.rows
PANEL_BYTES = VECTORS * VECTOR_BYTES  # width of a whole tile, in elements of b


def _tile(rows: int):
    """Return the intrinsic that computes rows i ... i + rows - 1 and, from j on, `columns` columns of c = a b."""
    if config.DISABLE_JIT:

        def plain(a, b, bias, c, i, j, columns, accumulate):
            product = plain_product(a[i : i + rows], b[:, j : j + columns])
            product = product + bias[j : j + columns] if bias.size else product
            place = c[i : i + rows, j : j + columns]
            place[...] = place + product if accumulate else rounded(product, c)

        return plain

    @intrinsic
    def tile(typing_context, a, b, bias, c, i, j, columns, accumulate):
        for x in (a, b, c):
            if not isinstance(x, types.Array) or x.ndim != 2:
                raise TypingError("a tile needs matrices a, b and c")
        kind = (str(a.dtype), str(c.dtype))
        if kind not in NUMBERS or b.dtype != a.dtype:
            raise TypingError(f"there are no tiles of {a.dtype} times {b.dtype} to {c.dtype}")

        def codegen(context, builder, signature, values):
            x, y, start, z = (
                context.make_array(kind)(context, builder, value)
                for kind, value in zip(signature.args[:4], values[:4], strict=True)
            )
            i, j, columns, accumulate = values[4:]
            ready(*map(np.dtype, kind))
            item, c_item = a.dtype.bitwidth // 8, c.dtype.bitwidth // 8
            lanes = VECTOR_BYTES // item
            a_row, a_step = (builder.extract_value(x.strides, axis) for axis in (0, 1))
            b_step, c_row = builder.extract_value(y.strides, 0), builder.extract_value(z.strides, 0)
            column = builder.mul(j, word(item))
            a_at = builder.gep(builder.bitcast(x.data, POINTER), [builder.mul(i, a_row)])
            b_at = builder.gep(builder.bitcast(y.data, POINTER), [column])
            c_start = builder.add(builder.mul(j, word(c_item)), builder.mul(i, c_row))
            c_at = builder.gep(builder.bitcast(z.data, POINTER), [c_start])
            depth = builder.extract_value(x.shape, 1)
            bias_at = builder.gep(builder.bitcast(start.data, POINTER), [column])
            has_bias = builder.icmp_signed(">", builder.extract_value(start.shape, 0), word(0))
            given = [a_at, a_row, a_step, b_at, b_step, bias_at, has_bias, c_at, c_row, depth, columns, accumulate]
            whole = builder.icmp_signed("==", columns, word(VECTORS * lanes))
            narrow = builder.icmp_signed("<=", columns, word(lanes))
            with builder.if_else(whole) as (full, partial):
                with full:
                    builder.call(tile_function(builder.module, rows, VECTORS, kind, False), given)
                with partial, builder.if_else(narrow) as (one, two):
                    with one:
                        builder.call(tile_function(builder.module, rows, 1, kind, True), given)
                    with two:
                        builder.call(tile_function(builder.module, rows, VECTORS, kind, True), given)
            return context.get_dummy_value()

        integers = (types.intp, types.intp, types.intp)
        return types.void(a, b, bias, c, *integers, types.boolean), codegen

    return tile


_tile_0, _tile_1, _tile_2, _tile_3 = map(_tile, ROWS)
_ROWS_0, _ROWS_1, _ROWS_2, _ROWS_3 = ROWS


@body
def multiply(a, b, c, accumulate):
    """Set c = a b, or c += a b if accumulate; see the top of this file."""
    _tiles(a, b, a[:0, :0], c, accumulate)  # no bias


@body
def multiply_add(a, b, bias, c):
    """Set c = a b + bias."""
    _tiles(a, b, bias, c, False)


@body
def _tiles(a, b, bias, c, accumulate):
    m, n = c.shape
    width = PANEL_BYTES // b.itemsize
    for j in range(0, n, width):
        # All rows are multiplied with one panel of b, which stays in the first-level cache.
        columns = min(width, n - j)
        i = 0
        while i + _ROWS_0 <= m:
            _tile_0(a, b, bias, c, i, j, columns, accumulate)
            i += _ROWS_0
        if i + _ROWS_1 <= m:
            _tile_1(a, b, bias, c, i, j, columns, accumulate)
            i += _ROWS_1
        while i + _ROWS_2 <= m:
            _tile_2(a, b, bias, c, i, j, columns, accumulate)
            i += _ROWS_2
        if i + 1 < m and m >= _ROWS_2 and not accumulate:
            # Rows before these are computed again, to the same bits: two or three single rows would take longer.
            _tile_2(a, b, bias, c, m - _ROWS_2, j, columns, accumulate)
            i = m
        while i < m:
            _tile_3(a, b, bias, c, i, j, columns, accumulate)
            i += _ROWS_3 if i + _ROWS_3 <= m else 1


def plain_product(a, b):
    """Return a b in float32 or float64, also for pairs of bfloat16."""
    if a.dtype != np.uint32:
        return a @ b
    first, second = ([widened(x.astype(np.uint16)) for x in (a >> s, b >> s)] for s in (np.uint32(0), np.uint32(16)))
    return first[0] @ first[1] + second[0] @ second[1]


@intrinsic
def _copy_to_panel(typing_context, row, j, panels, p, i):
    """Set panels[p, i] = row[j : j + width] by whole vectors, for panels (P, K, width) as wide as a tile."""
    if not isinstance(row, types.Array) or not isinstance(panels, types.Array) or row.dtype != panels.dtype:
        raise TypingError("copy_to_panel(row, j, panels, p, i) needs arrays of one dtype")

    def codegen(context, builder, signature, values):
        source, target = (context.make_array(signature.args[i])(context, builder, values[i]) for i in (0, 2))
        item = row.dtype.bitwidth // 8
        vector = ir.VectorType(source.data.type.pointee, PANEL_BYTES // item).as_pointer()
        place = builder.bitcast(target.data, POINTER)
        for axis, index in enumerate(values[3:5]):
            place = builder.gep(place, [builder.mul(index, builder.extract_value(target.strides, axis))])
        numbers = builder.load(builder.bitcast(builder.gep(source.data, [values[1]]), vector))
        numbers.align = item
        builder.store(numbers, builder.bitcast(place, vector)).align = item
        return context.get_dummy_value()

    return types.void(row, types.intp, panels, types.intp, types.intp), codegen


def _plain_copy_to_panel(row, j, panels, p, i):
    panels[p, i] = row[j : j + panels.shape[2]]


copy_to_panel = _plain_copy_to_panel if config.DISABLE_JIT else _copy_to_panel


@cache
def ready(operand, result=None):
    """Make the tiles for these dtypes available to compiled code: compile them, or load them from the cache.

    `operand` is the dtype of a and b; `result` is that of c, by default the same.
    """
    if config.DISABLE_JIT:
        return
    kind = (operand.name, (result or operand).name)
    module, functions = tile_module(kind, _FORM)
    cpu, features = processor.target()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3, jit=True, codemodel="jitdefault")
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)

    def compiled():
        write_tiles(functions, kind, _FORM)
        return machine.emit_object(binding.parse_assembly(str(module)))

    code = kept_object(f"tiles-{'-'.join(kind)}-{cpu}", features, compiled)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    for function in functions:
        binding.add_symbol(function.name, engine.get_function_address(function.name))
    _engines.append(engine)


_engines: list[binding.ExecutionEngine] = []  # kept alive, because they own the machine code
