"""Calls of compiled functions, made again without Python: with the same arrays, one after the other, in one call.

A training step calls about a hundred compiled functions, and most of the time between them is the interpreter's. Here
the arguments of a call are written down as 64-bit words. A few instructions, made once for each combination of types,
read the words and call the function, which is the one that Python would call, so it computes the same bits.
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from ..cpu.compiler import entry

_WORD = ir.IntType(64)
_callers: dict[int, tuple[int, Any, Any]] = {}  # by id of the compiled code: its caller's address, and what must live


def overload(compiled: Any, arguments: Sequence[Any]) -> Any:
    """Return the compiled code that serves a call with these arguments; compile it if no call has needed it before."""
    kinds = tuple(typeof(x) for x in arguments)
    if kinds not in compiled.overloads:
        try:
            compiled.compile(kinds)
        except RuntimeError:  # it is compiled for one signature only, which takes these arguments after a conversion
            (found,) = compiled.overloads.values()
            return found
    return compiled.overloads[kinds]


def words_of(kind: Any, value: Any) -> list[int]:
    """Return an argument of a type as words, in the order in which compiled code takes the parts of it."""
    if isinstance(kind, types.Array):
        place = value.__array_interface__["data"][0]
        return [0, 0, value.size, value.itemsize, place, *value.shape, *value.strides]
    if isinstance(kind, types.BaseTuple):
        return [word for part, x in zip(kind.types, value, strict=True) for word in words_of(part, x)]
    if isinstance(kind, types.Boolean | types.Integer):
        return [(int(value) + 2**63) % 2**64 - 2**63]
    if kind == types.float32:
        return list(struct.unpack("i", struct.pack("f", value)))
    if kind == types.float64:
        return list(struct.unpack("q", struct.pack("d", value)))
    raise TypeError(f"a call with a {kind} cannot be made again")


def make_callers(codes: Sequence[Any]) -> None:
    """Make, for each piece of compiled code, a function of words that calls it, and returns 0 if there was no error."""
    fresh = list({id(code): code for code in codes if id(code) not in _callers}.values())
    if not fresh:
        return
    context, names = cpu_target.target_context, [f"tinyvit_call_{len(_callers) + i}" for i in range(len(fresh))]
    with global_compiler_lock:
        library = context.codegen().create_library(names[0])
        module = library.create_ir_module(names[0])
        for name, code in zip(names, fresh, strict=True):
            _write_caller(context, module, name, code)
        library.add_ir_module(module)
        library.finalize()
    for name, code in zip(names, fresh, strict=True):
        _callers[id(code)] = library.get_pointer_to_function(name), library, code


def _write_caller(context: Any, module: Any, name: str, code: Any) -> None:
    function = ir.Function(module, ir.FunctionType(ir.IntType(32), [_WORD.as_pointer()]), name)
    builder = ir.IRBuilder(function.append_basic_block())
    kinds = code.fndesc.argtypes
    kind = context.call_conv.get_function_type(code.fndesc.restype, kinds)
    results = [builder.alloca(pointer.pointee) for pointer in kind.args[:2]]
    given = []
    for i, wanted in enumerate(kind.args[2:]):
        word = builder.load(builder.gep(function.args[0], [ir.Constant(_WORD, i)]))
        given.append(_as(builder, word, wanted))
    address = code.library.get_pointer_to_function(code.fndesc.llvm_func_name)
    status = builder.call(builder.inttoptr(ir.Constant(_WORD, address), kind.as_pointer()), [*results, *given])
    none = builder.icmp_signed("==", status, ir.Constant(status.type, -2))  # Numba's "returned None"
    builder.ret(builder.select(none, ir.Constant(status.type, 0), status))


def _as(builder: Any, word: Any, wanted: Any) -> Any:
    """Return a word as an argument of an LLVM type."""
    if isinstance(wanted, ir.PointerType):
        return builder.inttoptr(word, wanted)
    if isinstance(wanted, ir.FloatType):
        return builder.bitcast(builder.trunc(word, ir.IntType(32)), wanted)
    if isinstance(wanted, ir.DoubleType):
        return builder.bitcast(word, wanted)
    return word if wanted.width == 64 else builder.trunc(word, wanted)


@intrinsic
def _call(typing_context, function, words):
    def codegen(context, builder, signature, values):
        kind = ir.FunctionType(ir.IntType(32), [_WORD.as_pointer()])
        function = builder.inttoptr(values[0], kind.as_pointer())
        return builder.call(function, [builder.inttoptr(values[1], _WORD.as_pointer())])

    return types.int32(types.intp, types.intp), codegen


@entry
def _run(table, first, last):
    for i in range(first, last):
        if _call(table[i, 0], table[i, 1]) != 0:
            return i
    return -1


class Calls:
    """Calls of compiled functions in order, each with the arguments that it takes every time."""

    def __init__(self, calls: Sequence[tuple[Any, Sequence[Any]]]) -> None:
        codes = [overload(compiled, arguments) for compiled, arguments in calls]
        make_callers(codes)
        words: list[int] = []
        starts = []
        for code, (_, arguments) in zip(codes, calls, strict=True):
            starts.append(len(words))
            for kind, value in zip(code.fndesc.argtypes, arguments, strict=True):
                words += words_of(kind, value)
        self._words = np.array(words, np.int64)
        self._held = [arguments for _, arguments in calls]
        self._table = np.zeros((len(calls), 2), np.int64)
        self._table[:, 0] = [_callers[id(code)][0] for code in codes]
        self._table[:, 1] = np.array(starts, np.int64) * 8 + self._words.ctypes.data

    def __len__(self) -> int:
        return len(self._table)

    def run(self, first: int, last: int) -> None:
        """Make the calls `first` ... `last` - 1. Raises MemoryError if one of them raised an error."""
        if _run(self._table, first, last) >= 0:
            raise MemoryError("a kernel ran out of memory, or raised an error")
