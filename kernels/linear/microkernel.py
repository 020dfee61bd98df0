"""The inner loop of every matrix product: a tile of c in registers, written as LLVM IR for the processor in use.

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

The size of a tile depends on the vector registers (`processor`): 14 x 2 with the 32 of AVX-512, 6 x 2 with 16. Each sum
runs over k in order, one fused multiply-add after the other, whatever M, N and the number of threads are. Pairs of
bfloat16 need a processor that sums their products (`bfloat16.NATIVE`). A c of bfloat16 cannot be accumulated.
"""

from functools import cache

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.core.errors import TypingError
from numba.extending import intrinsic

from ..cache import kept_object
from ..cpu import processor
from ..cpu.bfloat16 import BFloat, rounded, widened, write_rounding
from ..cpu.compiler import body

_POINTER = ir.IntType(8).as_pointer()
_WORD, _HALF, _FLAG = ir.IntType(64), ir.IntType(32), ir.IntType(1)
_VECTORS = 2  # of b and c in a whole tile

VECTOR_BYTES = processor.VECTOR_BYTES[processor.level()]
ROWS = (14, 8, 4, 1) if VECTOR_BYTES == 64 else (6, 4, 2, 1)  # of the tiles that a matrix is cut into
PANEL_BYTES = _VECTORS * VECTOR_BYTES  # width of a whole tile, in elements of b

# LLVM's types of the elements of a and b, of the sums, and of the elements of c, by the dtypes of a and c.
_NUMBERS = {
    ("float32", "float32"): (ir.FloatType(), ir.FloatType(), ir.FloatType()),
    ("float64", "float64"): (ir.DoubleType(), ir.DoubleType(), ir.DoubleType()),
    ("float32", "uint16"): (ir.FloatType(), ir.FloatType(), ir.IntType(16)),
    ("uint32", "float32"): (ir.IntType(32), ir.FloatType(), ir.FloatType()),
    ("uint32", "uint16"): (ir.IntType(32), ir.FloatType(), ir.IntType(16)),
}


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
        if kind not in _NUMBERS or b.dtype != a.dtype:
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
            column = builder.mul(j, _word(item))
            a_at = builder.gep(builder.bitcast(x.data, _POINTER), [builder.mul(i, a_row)])
            b_at = builder.gep(builder.bitcast(y.data, _POINTER), [column])
            c_start = builder.add(builder.mul(j, _word(c_item)), builder.mul(i, c_row))
            c_at = builder.gep(builder.bitcast(z.data, _POINTER), [c_start])
            depth = builder.extract_value(x.shape, 1)
            bias_at = builder.gep(builder.bitcast(start.data, _POINTER), [column])
            has_bias = builder.icmp_signed(">", builder.extract_value(start.shape, 0), _word(0))
            given = [a_at, a_row, a_step, b_at, b_step, bias_at, has_bias, c_at, c_row, depth, columns, accumulate]
            whole = builder.icmp_signed("==", columns, _word(_VECTORS * lanes))
            narrow = builder.icmp_signed("<=", columns, _word(lanes))
            with builder.if_else(whole) as (full, partial):
                with full:
                    builder.call(_tile_function(builder.module, rows, _VECTORS, kind, False), given)
                with partial, builder.if_else(narrow) as (one, two):
                    with one:
                        builder.call(_tile_function(builder.module, rows, 1, kind, True), given)
                    with two:
                        builder.call(_tile_function(builder.module, rows, _VECTORS, kind, True), given)
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
        while i < m:
            _tile_3(a, b, bias, c, i, j, columns, accumulate)
            i += _ROWS_3 if i + _ROWS_3 <= m else 1


def _word(value):
    return ir.Constant(_WORD, value)


def _tile_function(module, rows, vectors, kind, masked):
    """Declare void f(a, a_row, a_step, b, b_step, bias, has_bias, c, c_row, depth, columns, accumulate).

    Strides are in bytes. `ready` compiles the function once for all kernels; compiling it in each of them would take
    most of the time.
    """
    arguments = [_POINTER, _WORD, _WORD, _POINTER, _WORD, _POINTER, _FLAG, _POINTER, _WORD, _WORD, _WORD, _FLAG]
    name = f"tinyvit_tile_{rows}x{vectors}_{'_'.join(kind)}{'_masked' * masked}"
    return cgutils.get_or_insert_function(module, ir.FunctionType(ir.VoidType(), arguments), name)


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
        place = builder.bitcast(target.data, _POINTER)
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
    module = ir.Module("tinyvit_tiles")
    shapes = [(rows, v, masked) for rows in ROWS for v, masked in ((_VECTORS, False), (_VECTORS, True), (1, True))]
    functions = [_tile_function(module, rows, v, kind, masked) for rows, v, masked in shapes]
    cpu, features = processor.target()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3, jit=True, codemodel="jitdefault")
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)

    def compiled():
        for function, shape in zip(functions, shapes, strict=True):
            _write_tile(function, shape[0], shape[1], kind, shape[2])
        return machine.emit_object(binding.parse_assembly(str(module)))

    code = kept_object(f"tiles-{'-'.join(kind)}-{cpu}", features, compiled)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    for function in functions:
        binding.add_symbol(function.name, engine.get_function_address(function.name))
    _engines.append(engine)


_engines: list[binding.ExecutionEngine] = []  # kept alive, because they own the machine code


def _write_tile(function, rows, vectors, kind, masked):
    """Write the body of the function that `_tile_function` declares."""
    a, a_row, a_step, b, b_step, bias, has_bias, c, c_row, depth, columns, accumulate = function.args
    operand, number, element = _NUMBERS[kind]
    item = 8 if isinstance(number, ir.DoubleType) else 4
    lanes = VECTOR_BYTES // item
    operands, vector = ir.VectorType(operand, lanes), ir.VectorType(number, lanes)
    entry, loop, end = (function.append_basic_block(block) for block in ("entry", "loop", "end"))

    builder = ir.IRBuilder(entry)
    masks = [_mask(builder, columns, v * lanes, lanes) for v in range(vectors)] if masked else [None] * vectors
    starts = _row_addresses(builder, a, a_row, rows)
    flags = _broadcast(builder, has_bias, ir.VectorType(_FLAG, lanes))
    zeros = ir.Constant(vector, [0.0] * lanes)
    ends = []  # the bias is added last: if sums began with it, each partial sum would be rounded at its size
    for v in range(vectors):
        mask = flags if masks[v] is None else builder.and_(flags, masks[v])
        ends.append(_load(builder, bias, v, vector, mask))
    builder.cbranch(builder.icmp_signed(">", depth, _word(0)), loop, end)

    builder.position_at_end(loop)
    k, b_at = builder.phi(_WORD), builder.phi(_POINTER)
    a_offset = builder.phi(_WORD)
    sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
    loads = [_load(builder, b_at, v, operands, masks[v]) for v in range(vectors)]
    new = []
    for m in range(rows):
        place = builder.gep(starts[m], [a_offset])
        value = builder.load(builder.bitcast(place, operand.as_pointer()))
        value.align = item
        spread = _broadcast(builder, value, operands)
        new.append([_multiplied(builder, spread, loads[v], sums[m][v]) for v in range(vectors)])
    following = builder.add(k, _word(1))
    moves = [(k, _word(0), following), (b_at, b, builder.gep(b_at, [b_step]))]
    moves.append((a_offset, _word(0), builder.add(a_offset, a_step)))
    moves += [(sums[m][v], zeros, new[m][v]) for m in range(rows) for v in range(vectors)]
    for phi, start, step in moves:
        phi.add_incoming(start, entry)
        phi.add_incoming(step, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, end)

    builder.position_at_end(end)
    results = []
    for m in range(rows):
        for v in range(vectors):
            result = builder.phi(vector)
            result.add_incoming(zeros, entry)
            result.add_incoming(new[m][v], loop)
            results.append((m, v, result))
    row_starts = _row_addresses(builder, c, c_row, rows)
    with builder.if_else(accumulate) as (add, overwrite):
        with add:
            _write_sums(builder, results if element == number else [], row_starts, masks)
        with overwrite:
            _write_results(builder, results, ends, row_starts, masks, rounds=element != number)
    builder.ret_void()


def _row_addresses(builder, first, step, count):
    addresses = [first]
    for _ in range(count - 1):
        addresses.append(builder.gep(addresses[-1], [step]))
    return addresses


def _write_sums(builder, results, row_starts, masks):
    """Add the vectors (m, v, result) to c."""
    for m, v, result in results:
        before = _load(builder, row_starts[m], v, result.type, masks[v])
        _store(builder, builder.fadd(before, result), row_starts[m], v, masks[v])


def _write_results(builder, results, ends, row_starts, masks, rounds):
    """Store the vectors (m, v, result), plus the bias in `ends`, in c."""
    for m, v, result in results:
        total = builder.fadd(result, ends[v])
        total = write_rounding(builder, total) if rounds else total
        _store(builder, total, row_starts[m], v, masks[v])


def _multiplied(builder, x, y, total):
    """Return total + x y; for pairs, the sum of both products."""
    vector = total.type
    if isinstance(x.type.element, ir.IntType):
        shorts = ir.VectorType(BFloat(), 2 * vector.count)
        kind = ir.FunctionType(vector, [vector, shorts, shorts])
        name = f"llvm.x86.avx512bf16.dpbf16ps.{8 * VECTOR_BYTES}"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [total, builder.bitcast(x, shorts), builder.bitcast(y, shorts)])
    if not processor.fuses():
        return builder.fadd(builder.fmul(x, y), total)
    return builder.call(_intrinsic(builder.module, "fma", vector, [vector, vector, vector]), [x, y, total])


def _intrinsic(module, operation, vector, arguments):
    """Return LLVM's intrinsic for `operation` on vectors of this type."""
    name = f"llvm.{operation}.v{vector.count}{_SHORT[str(vector.element)]}"
    result = ir.VoidType() if operation == "masked.store" else vector
    name += ".p0" if operation.startswith("masked") else ""  # operations on memory also name the pointer's type
    return cgutils.get_or_insert_function(module, ir.FunctionType(result, arguments), name)


_SHORT = {
    "float": "f32",
    "double": "f64",
    "i32": "i32",
    "i16": "i16",
}  # as in the names of intrinsics


def _broadcast(builder, value, vector):
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_HALF, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_HALF, vector.count), [0] * vector.count))


def _mask(builder, columns, start, lanes):
    """Return for each of the lanes start ... start + lanes - 1 whether it is less than `columns`."""
    words = ir.VectorType(_WORD, lanes)
    lane = ir.Constant(words, [start + i for i in range(lanes)])
    return builder.icmp_signed("<", lane, _broadcast(builder, columns, words))


def _place(builder, row, v, vector):
    """Return the address of vector v of a row, and its alignment, which is that of its elements."""
    item = _BYTES[str(vector.element)]
    return builder.bitcast(builder.gep(row, [_word(v * vector.count * item)]), vector.as_pointer()), item


_BYTES = {"float": 4, "double": 8, "i32": 4, "i16": 2}


def _load(builder, row, v, vector, mask):
    place, align = _place(builder, row, v, vector)
    if mask is None:
        value = builder.load(place)
        value.align = align
        return value
    load = _intrinsic(builder.module, "masked.load", vector, [vector.as_pointer(), _HALF, mask.type, vector])
    zeros = ir.Constant(vector, [0 if isinstance(vector.element, ir.IntType) else 0.0] * vector.count)
    return builder.call(load, [place, ir.Constant(_HALF, align), mask, zeros])


def _store(builder, value, row, v, mask):
    vector = value.type
    place, align = _place(builder, row, v, vector)
    if mask is None:
        builder.store(value, place).align = align
        return
    store = _intrinsic(builder.module, "masked.store", vector, [vector, vector.as_pointer(), _HALF, mask.type])
    builder.call(store, [value, place, ir.Constant(_HALF, align), mask])
