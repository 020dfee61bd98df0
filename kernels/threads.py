"""The threads of the Numba kernels: how many, and `parallel`, which shares the chunks of a kernel out among them.

A kernel is a serial function of one chunk of its work. `parallel(body, chunks, team, arguments)`, called from compiled
code, runs `body(chunk, chunks, *arguments)` for every chunk. The caller and a few workers each take the next chunk when
they are done with one, until none is left; the caller never waits for a worker that has not begun. So a core that is
busy elsewhere slows a kernel down by its share and no more, where a barrier of OpenMP would stand still until it comes
back. Chunks are chosen by shape alone, never by the number of threads, so results do not depend on it.

The workers are Python threads that run compiled code without the interpreter's lock. Between kernels they spin, for a
kernel comes every few microseconds; after a few milliseconds without one they sleep, and `team()` wakes them. There
is no other pool in it: not OpenMP's, not OpenBLAS's. After a fork the child starts workers of its own.
"""

import atexit
import os
import platform
import threading
from functools import cache

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.errors import TypingError
from numba.extending import intrinsic

from .compiler import entry

_POINTER = ir.IntType(8).as_pointer()
_WORD = ir.IntType(64)
_ZERO, _ONE = ir.Constant(_WORD, 0), ir.Constant(_WORD, 1)
_WORKER = ir.FunctionType(ir.VoidType(), [_POINTER])

# What caller and workers share: 64-bit words, each on a cache line of its own.
_BUSY, _OPEN, _ACTIVE, _WORK, _DATA, _JOBS, _STOP = range(0, 56, 8)
_SPINS = 60_000  # looks at _OPEN, some 20 to 50 nanoseconds apart, before a worker goes to sleep


@cache
def thread_count() -> int:
    """How many threads compute: TINYVIT_THREADS, else one for each processor this process may use."""
    wanted = os.environ.get("TINYVIT_THREADS", "")
    if not wanted:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not wanted.isdecimal() or not 1 <= int(wanted) <= 1024:
        raise ValueError(f"TINYVIT_THREADS is {wanted!r}; it must be a whole number from 1 to 1024")
    return int(wanted)


class _Team:
    """The workers, and the words they share with whoever calls them."""

    def __init__(self, size: int) -> None:
        memory = np.zeros(64 + 8, np.int64)
        self.words = memory[-(memory.ctypes.data // 8) % 8 :][:64]  # from the start of a cache line
        self.address = self.words.ctypes.data
        self.sleeping = 0
        self._bell = threading.Condition()
        self._workers = [threading.Thread(target=self._serve, name=f"tinyvit-{i}", daemon=True) for i in range(1, size)]
        for worker in self._workers:
            worker.start()

    def _serve(self) -> None:
        while not self.words[_STOP]:
            _work(self.address)
            with self._bell:
                if self.words[_STOP]:
                    return
                self.sleeping += 1
                self._bell.wait()
                self.sleeping -= 1

    def wake(self) -> None:
        with self._bell:
            self._bell.notify_all()

    def stop(self) -> None:
        self.words[_STOP] = 1
        self.wake()
        for worker in self._workers:
            worker.join()


_team: _Team | None = None
_starting = threading.Lock()


def team(worthwhile: bool = True) -> int:
    """What to hand to `parallel` to have it done by all threads, who are awake then; 0: by the caller alone.

    `worthwhile` says whether there is enough to do: sharing costs a few microseconds.
    """
    global _team
    if not worthwhile:
        return 0
    if _team is None:
        with _starting:
            if _team is None and thread_count() > 1 and not config.DISABLE_JIT:
                _work(0)  # compiled before any thread runs it
                _team = _Team(thread_count())
                atexit.register(_team.stop)
        if _team is None:
            return 0
    if _team.sleeping:
        _team.wake()
    return _team.address


def _after_fork() -> None:
    """In the child there are no workers, nor anyone to hold the locks."""
    global _team, _starting
    _team, _starting = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# Compiled code ------------------------------------------------------------------------------------------------------


def _field(builder, address, index):
    """The place of a shared word."""
    return builder.gep(builder.inttoptr(address, _WORD.as_pointer()), [ir.Constant(_WORD, index)])


def _get(builder, place):
    return builder.load_atomic(place, "seq_cst", 8)


def _set(builder, value, place):
    builder.store_atomic(value, place, "seq_cst", 8)


def _pause(builder):
    """Tell the processor that this is a waiting loop, where it has an instruction for that."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        pause = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, pause, "llvm.x86.sse2.pause"), [])


@intrinsic
def _serve(typing_context, address):
    """Take part in every job, until none has come for a while."""

    def codegen(context, builder, signature, values):
        (address,) = values
        fields = {i: _field(builder, address, i) for i in (_OPEN, _ACTIVE, _WORK, _DATA, _STOP)}
        before = builder.block
        names = ("look", "check", "rest", "join", "work", "leave", "end")
        look, check, rest, join, work, leave, end = (builder.append_basic_block(name) for name in names)
        builder.branch(look)

        builder.position_at_end(look)
        idle, last = builder.phi(_WORD), builder.phi(_WORD)
        builder.cbranch(builder.icmp_signed("==", _get(builder, fields[_STOP]), _ZERO), check, end)

        builder.position_at_end(check)
        job = _get(builder, fields[_OPEN])
        fresh = builder.and_(builder.icmp_signed("!=", job, _ZERO), builder.icmp_signed("!=", job, last))
        builder.cbranch(fresh, join, rest)

        builder.position_at_end(rest)
        _pause(builder)
        longer = builder.add(idle, _ONE)
        builder.cbranch(builder.icmp_signed("<", longer, ir.Constant(_WORD, _SPINS)), look, end)

        builder.position_at_end(join)
        # Count oneself in, then look again: the caller first closes the job, then waits for those who are in.
        builder.atomic_rmw("add", fields[_ACTIVE], _ONE, "seq_cst")
        builder.cbranch(builder.icmp_signed("==", _get(builder, fields[_OPEN]), job), work, leave)

        builder.position_at_end(work)
        function = builder.inttoptr(builder.load(fields[_WORK]), _WORKER.as_pointer())
        builder.call(function, [builder.inttoptr(builder.load(fields[_DATA]), _POINTER)])
        builder.branch(leave)

        builder.position_at_end(leave)
        builder.atomic_rmw("sub", fields[_ACTIVE], _ONE, "seq_cst")
        builder.branch(look)

        for phi, step in ((idle, longer), (last, last)):
            phi.add_incoming(_ZERO, before)
            phi.add_incoming(step, rest)
        idle.add_incoming(_ZERO, leave)
        last.add_incoming(job, leave)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@entry
def _work(address):
    if address != 0:
        _serve(address)


def _parallel_plain(body, chunks, team, arguments):
    for chunk in range(chunks):
        body(chunk, chunks, *arguments)


@intrinsic
def _parallel(typing_context, body, chunks, team, arguments):
    if not isinstance(body, types.Dispatcher) or not isinstance(arguments, types.BaseTuple):
        raise TypingError("parallel(body, chunks, team, arguments): body is compiled code, arguments a tuple")

    def codegen(context, builder, signature, values):
        _, chunks, team, packed = values
        shared = cgutils.alloca_once(builder, ir.LiteralStructType([_WORD, _WORD, _WORD, packed.type]))
        fields = [cgutils.gep_inbounds(builder, shared, 0, i) for i in range(4)]  # next chunk, chunks, failed, packed
        for field, value in zip(fields, (_ZERO, chunks, _ZERO, packed), strict=True):
            builder.store(value, field)
        worker = _worker(context, builder, signature.args[0].dispatcher, arguments, shared.type)
        data = builder.bitcast(shared, _POINTER)
        several = builder.and_(builder.icmp_signed("!=", team, _ZERO), builder.icmp_signed(">", chunks, _ONE))
        with builder.if_else(several) as (together, alone):
            with together:
                _call_together(builder, worker, data, team)
            with alone:
                builder.call(worker, [data])
        with cgutils.if_unlikely(builder, builder.icmp_signed("!=", builder.load(fields[2]), _ZERO)):
            context.call_conv.return_user_exc(builder, MemoryError, ("no memory is left for a kernel",))
        return context.get_dummy_value()

    return types.void(body, types.intp, types.intp, arguments), codegen


parallel = _parallel_plain if config.DISABLE_JIT else _parallel


def _worker(context, builder, body, arguments, shared_type):
    """void worker(data): do chunks until none is left."""
    inner = (types.intp, types.intp, *arguments.types)
    resolved = context.typing_context.resolve_function_type(types.Dispatcher(body), inner, {})
    compiled = body.get_compile_result(resolved)
    context.add_linking_libs([compiled.library])
    worker = ir.Function(builder.module, _WORKER, builder.module.get_unique_name("tinyvit_worker"))
    worker.linkage = "internal"
    begin, look, work, failed, done = (worker.append_basic_block(name) for name in ("", "look", "work", "fail", "done"))

    inside = ir.IRBuilder(begin)
    shared = inside.bitcast(worker.args[0], shared_type)
    fields = [cgutils.gep_inbounds(inside, shared, 0, i) for i in range(4)]
    chunks, packed = inside.load(fields[1]), inside.load(fields[3])
    unpacked = cgutils.unpack_tuple(inside, packed, len(arguments.types))
    unpacked = [_borrowed(context, inside, kind, value) for kind, value in zip(arguments, unpacked, strict=True)]
    inside.branch(look)
    inside.position_at_end(look)
    chunk = inside.atomic_rmw("add", fields[0], _ONE, "seq_cst")
    inside.cbranch(inside.icmp_signed("<", chunk, chunks), work, done)
    inside.position_at_end(work)
    given = [chunk, chunks, *unpacked]
    status, _ = context.call_internal_no_propagate(inside, compiled.fndesc, compiled.signature, given)
    inside.cbranch(status.is_error, failed, look)
    inside.position_at_end(failed)
    inside.store(_ONE, fields[2])
    inside.branch(look)
    inside.position_at_end(done)
    inside.ret_void()
    return worker


def _borrowed(context, builder, kind, value):
    """An array without its reference count, on which all threads would otherwise write for every row they look at."""
    if not isinstance(kind, types.Array):
        return value
    array = context.make_array(kind)(context, builder, value)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    return array._getvalue()


def _call_together(builder, worker, data, team):
    """Open the job to the workers, take part in it, close it, and wait for those who are in it; alone if they serve
    another caller."""
    fields = {i: _field(builder, team, i) for i in (_BUSY, _OPEN, _ACTIVE, _WORK, _DATA, _JOBS)}
    taken = builder.extract_value(builder.cmpxchg(fields[_BUSY], _ZERO, _ONE, "seq_cst", "seq_cst"), 1)
    with builder.if_else(taken) as (free, busy):
        with free:
            builder.store(builder.ptrtoint(worker, _WORD), fields[_WORK])
            builder.store(builder.ptrtoint(data, _WORD), fields[_DATA])
            job = builder.add(builder.load(fields[_JOBS]), _ONE)
            builder.store(job, fields[_JOBS])
            _set(builder, job, fields[_OPEN])
            builder.call(worker, [data])
            _set(builder, _ZERO, fields[_OPEN])
            wait, finished = builder.append_basic_block("wait"), builder.append_basic_block("finished")
            builder.branch(wait)
            builder.position_at_end(wait)
            _pause(builder)
            builder.cbranch(builder.icmp_signed("==", _get(builder, fields[_ACTIVE]), _ZERO), finished, wait)
            builder.position_at_end(finished)
            _set(builder, _ZERO, fields[_BUSY])
        with busy:
            builder.call(worker, [data])
