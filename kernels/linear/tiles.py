"""The tiles of matrix products as LLVM IR, for the registers of one processor: what `microkernel` calls.

A tile multiplies `rows` rows of a with one or two vectors of columns of b; the masked ones load and store the columns
beyond the last whole vectors under a mask. The same code writes them for every processor: for which one, `Form` says.
"""

from typing import NamedTuple

from llvmlite import ir
from numba.core import cgutils

from ..cpu import processor
from ..cpu.bfloat16 import BFloat, write_rounding

POINTER = ir.IntType(8).as_pointer()
_WORD, _HALF, _FLAG = ir.IntType(64), ir.IntType(32), ir.IntType(1)
VECTORS = 2  # of b and c in a whole tile


class Form(NamedTuple):
    """What the tiles for a processor look like."""

    vector_bytes: int
    rows: tuple[int, int, int, int]  # of the tiles that a matrix is cut into, the largest first
    fuses: bool  # whether the processor has a fused multiply-add


FORMS = {
    **dict.fromkeys(("avx512_bf16", "avx512"), Form(64, (14, 8, 4, 1), True)),
    "avx2": Form(32, (6, 4, 2, 1), True),
    "neon": Form(16, (8, 4, 2, 1), True),
    "generic": Form(16, (6, 4, 2, 1), processor.fuses()),
}

# LLVM's types of the elements of a and b, of the sums, and of the elements of c, by the dtypes of a and c.
NUMBERS = {
    ("float32", "float32"): (ir.FloatType(), ir.FloatType(), ir.FloatType()),
    ("float64", "float64"): (ir.DoubleType(), ir.DoubleType(), ir.DoubleType()),
    ("float32", "uint16"): (ir.FloatType(), ir.FloatType(), ir.IntType(16)),
    ("uint32", "float32"): (ir.IntType(32), ir.FloatType(), ir.FloatType()),
    ("uint32", "uint16"): (ir.IntType(32), ir.FloatType(), ir.IntType(16)),
}


def word(value):
    return ir.Constant(_WORD, value)


def tile_function(module, rows, vectors, kind, masked):
    """Declare void f(a, a_row, a_step, b, b_step, bias, has_bias, c, c_row, depth, columns, accumulate).

    Strides are in bytes. `microkernel.ready` compiles the function once for all kernels; compiling it in each of them
    would take most of the time.
    """
    arguments = [POINTER, _WORD, _WORD, POINTER, _WORD, POINTER, _FLAG, POINTER, _WORD, _WORD, _WORD, _FLAG]
    name = f"tinyvit_tile_{rows}x{vectors}_{'_'.join(kind)}{'_masked' * masked}"
    return cgutils.get_or_insert_function(module, ir.FunctionType(ir.VoidType(), arguments), name)


def _shapes(form):
    """Return the rows and vectors of each tile, and whether its columns are masked."""
    return [(rows, v, masked) for rows in form.rows for v, masked in ((VECTORS, False), (VECTORS, True), (1, True))]


def tile_module(kind, form):
    """Return a module that declares the tiles for the names of the dtypes of a and c, and the functions in it."""
    module = ir.Module("tinyvit_tiles")
    return module, [tile_function(module, rows, v, kind, masked) for rows, v, masked in _shapes(form)]


def write_tiles(functions, kind, form):
    """Write the bodies of the functions that `tile_module` declares."""
    for function, shape in zip(functions, _shapes(form), strict=True):
        _write_tile(function, *shape, kind, form)


def _write_tile(function, rows, vectors, masked, kind, form):
    """Write the body of the function that `tile_function` declares."""
    a, a_row, a_step, b, b_step, bias, has_bias, c, c_row, depth, columns, accumulate = function.args
    operand, number, element = NUMBERS[kind]
    item = 8 if isinstance(number, ir.DoubleType) else 4
    lanes = form.vector_bytes // item
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
    builder.cbranch(builder.icmp_signed(">", depth, word(0)), loop, end)

    builder.position_at_end(loop)
    k, b_at = builder.phi(_WORD), builder.phi(POINTER)
    a_offset = builder.phi(_WORD)
    sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
    loads = [_load(builder, b_at, v, operands, masks[v]) for v in range(vectors)]
    new = []
    for m in range(rows):
        place = builder.gep(starts[m], [a_offset])
        value = builder.load(builder.bitcast(place, operand.as_pointer()))
        value.align = item
        spread = _broadcast(builder, value, operands)
        new.append([_multiplied(builder, spread, loads[v], sums[m][v], form) for v in range(vectors)])
    following = builder.add(k, word(1))
    moves = [(k, word(0), following), (b_at, b, builder.gep(b_at, [b_step]))]
    moves.append((a_offset, word(0), builder.add(a_offset, a_step)))
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


def _multiplied(builder, x, y, total, form):
    """Return total + x y; for pairs, the sum of both products."""
    vector = total.type
    if isinstance(x.type.element, ir.IntType):
        shorts = ir.VectorType(BFloat(), 2 * vector.count)
        kind = ir.FunctionType(vector, [vector, shorts, shorts])
        name = f"llvm.x86.avx512bf16.dpbf16ps.{8 * form.vector_bytes}"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [total, builder.bitcast(x, shorts), builder.bitcast(y, shorts)])
    if not form.fuses:
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
    return builder.bitcast(builder.gep(row, [word(v * vector.count * item)]), vector.as_pointer()), item


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
