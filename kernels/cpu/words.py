"""The words that a caller and the workers of a team share, and how compiled code reads them and waits for changes."""

import platform

from llvmlite import ir
from numba.core import cgutils

POINTER, WORD = ir.IntType(8).as_pointer(), ir.IntType(64)
ZERO, ONE = ir.Constant(WORD, 0), ir.Constant(WORD, 1)

# 64-bit words, each on a cache line of its own, then a line for each worker.
LINE = 8  # words
BUSY, OPEN, ACTIVE, WORK, DATA, JOBS, STOP, CALLS, WORKERS = range(0, 9 * LINE, LINE)
ACQUIRE, RELEASE, COUNT, YIELD = range(CALLS, CALLS + 4)  # three functions and the number of workers, constant
ASLEEP, BELL = 0, 1  # words of a worker's line
_PATIENCE = 200  # how often a worker or a caller reads its word, every 20 to 50 nanoseconds, before it gives way


def word_at(builder, address, index):
    """Return the address of a shared word."""
    return builder.gep(builder.inttoptr(address, WORD.as_pointer()), [ir.Constant(WORD, index)])


def get(builder, place):
    return builder.load_atomic(place, "seq_cst", 8)


def put(builder, value, place):
    builder.store_atomic(value, place, "seq_cst", 8)


def pause(builder):
    """Mark a waiting loop for the processor, where it has an instruction for that."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])


def give_way(builder, address, waited):
    """Let another thread run here after some rounds of a waiting loop, if there is one that wants to.

    The thread that this one waits for may itself be waiting for a processor, perhaps for this one.
    """
    function = builder.load(word_at(builder, address, YIELD))
    tired = builder.icmp_signed(">=", waited, ir.Constant(WORD, _PATIENCE))
    with builder.if_then(builder.and_(tired, builder.icmp_signed("!=", function, ZERO))):
        signature = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(function, signature.as_pointer()), [])


def ring(builder, address, worker):
    """Wake a worker if it sleeps. The thread that turns its flag from 1 to 0 rings, so its bell is rung only once."""
    flag = builder.gep(worker, [ir.Constant(WORD, ASLEEP)])
    was = builder.atomic_rmw("xchg", flag, ZERO, "seq_cst")
    with builder.if_then(builder.icmp_signed("==", was, ONE)):
        signature = ir.FunctionType(ir.VoidType(), [POINTER])
        release = builder.inttoptr(builder.load(word_at(builder, address, RELEASE)), signature.as_pointer())
        bell = builder.load(builder.gep(worker, [ir.Constant(WORD, BELL)]))
        builder.call(release, [builder.inttoptr(bell, POINTER)])


def ring_each(builder, address):
    """Wake all workers that sleep."""
    with cgutils.for_range(builder, builder.load(word_at(builder, address, COUNT))) as loop:
        line = builder.add(ir.Constant(WORD, WORKERS), builder.mul(loop.index, ir.Constant(WORD, LINE)))
        worker = builder.gep(builder.inttoptr(address, WORD.as_pointer()), [line])
        with builder.if_then(builder.icmp_signed("!=", get(builder, worker), ZERO)):
            ring(builder, address, worker)
