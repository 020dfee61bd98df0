"""The threads of the Numba kernels: how many there are, and `parallel`, which shares the chunks of a kernel among them.

A kernel is a serial function of one chunk of its work. `parallel(body, chunks, team, arguments)`, called from compiled
code, runs `body(chunk, chunks, *arguments)` for every chunk. The caller and a few workers each take one chunk after the
other until none is left; the caller never waits for a worker that has not begun. So a core that is busy with something
else slows a kernel down by no more than its share, whereas a barrier of OpenMP would wait for it. Shapes alone decide
what the chunks are, never the number of threads, so results do not depend on that number.

Each thread begins with its own share, consecutive chunks of which there are as many as of any other's, and helps with
the shares of others only when it has finished that. Chunks are in the order of the rows, so a thread mostly reads the
rows that it wrote in the kernel before, which are still in the cache of its core. With two threads on a Zen 4, a step
of `mnist-s` takes 0.88 and one of `vit-s` 0.98 times as long as when each thread takes whichever chunk is next.

The workers are Python threads that run compiled code without the interpreter's lock. Between kernels they spin, because
a kernel comes every few microseconds; after a millisecond or two without one they sleep until their bell is rung. No
other thread pool takes part, neither OpenMP's nor OpenBLAS's. After a fork the child starts workers of its own.

A thread that has spun for some microseconds yields the processor between its reads. Where more threads want to run
than there are processors, the thread that it waits for may be waiting for a processor itself. With such neighbours, a
step of `mnist-s` or `digits-s` on two cores takes two thirds of the time that it takes with spinning alone.
"""

import atexit
import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from functools import cache

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.errors import TypingError
from numba.extending import intrinsic

from . import words
from .compiler import entry
from .quota import usable_processors, wanted_threads
from .words import ONE, POINTER, WORD, ZERO, get, give_way, pause, put, ring, ring_each, word_at

_WORKER = ir.FunctionType(ir.VoidType(), [POINTER, WORD])
_SHARES = 32  # the most shares into which the chunks of a kernel are cut
_TAKEN = ir.ArrayType(ir.ArrayType(WORD, words.LINE), _SHARES)  # the number of chunks taken of each share
_SPINS = 4_000  # how often a worker reads OPEN before it goes to sleep: giving way takes a few hundred nanoseconds


@cache
def thread_count() -> int:
    """Return how many threads compute: TINYVIT_THREADS, else one for each processor that this process may keep busy."""
    return wanted_threads() or usable_processors()


class _Team:
    """The workers, and the words that they share with their callers."""

    def __init__(self, size: int) -> None:
        memory = np.zeros(words.WORKERS + (size + 1) * words.LINE, np.int64)
        self.words = memory[-(memory.ctypes.data // 8) % words.LINE :]  # begins on a cache line
        self.address = self.words.ctypes.data
        # A bell is one of the interpreter's locks, which compiled code can wait for and release on every system.
        python = ctypes.pythonapi
        python.PyThread_allocate_lock.restype = ctypes.c_void_p
        python.PyThread_acquire_lock.argtypes = (ctypes.c_void_p, ctypes.c_int)
        self.words[words.ACQUIRE] = ctypes.cast(python.PyThread_acquire_lock, ctypes.c_void_p).value or 0
        self.words[words.RELEASE] = ctypes.cast(python.PyThread_release_lock, ctypes.c_void_p).value or 0
        self.words[words.YIELD] = _address_of_yield()
        self._workers = []
        for i in range(size - 1):
            bell = python.PyThread_allocate_lock()
            python.PyThread_acquire_lock(bell, 1)
            self.words[words.WORKERS + i * words.LINE + words.BELL] = bell
            arguments = (self.address, self.address + 8 * (words.WORKERS + i * words.LINE))
            worker = threading.Thread(target=_work, args=arguments, name=f"tinyvit-{i}", daemon=True)
            try:
                worker.start()
            except RuntimeError:  # the system allows no more threads: those that have started do the work
                break
            self._workers.append(worker)
            self.words[words.COUNT] = len(self._workers)

    def stop(self) -> None:
        self.words[words.STOP] = 1
        _ring_all(self.address)
        for worker in self._workers:
            worker.join()


def _address_of_yield() -> int:
    """Return the address of the system's function that lets another thread run on this processor; 0 if it has none."""
    library, name = ("kernel32", "SwitchToThread") if os.name == "nt" else (None, "sched_yield")
    try:
        return ctypes.cast(getattr(ctypes.CDLL(library), name), ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


_team: _Team | None = None
_starting = threading.Lock()


def team(worthwhile: bool = True) -> int:
    """Return what `parallel` takes as its team: 0 for the caller alone, else the address of the shared words.

    `worthwhile` says whether there is enough work: sharing it costs a few microseconds.
    """
    global _team
    if not worthwhile:
        return 0
    if _team is None:
        with _starting:
            if _team is None and thread_count() > 1 and not config.DISABLE_JIT:
                _work(0, 0)  # compile it before any thread runs it
                _ring_all(0)
                _team = _Team(thread_count())
                atexit.register(_team.stop)
        if _team is None:
            return 0
    return _team.address


@contextlib.contextmanager
def without_workers() -> Iterator[None]:
    """Within this block the callers of kernels do all the work themselves, as if no worker could be started."""
    global _team
    with _starting:
        before, _team = _team, None if config.DISABLE_JIT else _Team(1)
    try:
        yield
    finally:
        with _starting:
            _team = before


def _after_fork() -> None:
    """Forget the team: in the child there are no workers, and no thread holds the locks."""
    global _team, _starting
    _team, _starting = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# Compiled code ------------------------------------------------------------------------------------------------------


@intrinsic
def _ring_workers(typing_context, address):
    def codegen(context, builder, signature, values):
        ring_each(builder, values[0])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@intrinsic
def _serve(typing_context, address, place):
    """Take part in every job until the team is stopped; sleep when there has been none for a while."""

    def codegen(context, builder, signature, values):
        address, place = values
        fields = {
            i: word_at(builder, address, i)
            for i in (words.OPEN, words.ACTIVE, words.WORK, words.DATA, words.STOP, words.ACQUIRE)
        }
        worker = builder.inttoptr(place, WORD.as_pointer())
        before = builder.block
        names = ("look", "check", "rest", "lie_down", "sleep", "join", "work", "leave", "end")
        look, check, rest, lie_down, sleep, join, work, leave, end = map(builder.append_basic_block, names)
        builder.branch(look)

        builder.position_at_end(look)
        idle, last = builder.phi(WORD), builder.phi(WORD)
        builder.cbranch(builder.icmp_signed("==", get(builder, fields[words.STOP]), ZERO), check, end)

        builder.position_at_end(check)
        job = get(builder, fields[words.OPEN])
        fresh = builder.and_(builder.icmp_signed("!=", job, ZERO), builder.icmp_signed("!=", job, last))
        builder.cbranch(fresh, join, rest)

        builder.position_at_end(rest)
        pause(builder)
        give_way(builder, address, idle)
        rested = builder.block
        longer = builder.add(idle, ONE)
        builder.cbranch(builder.icmp_signed("<", longer, ir.Constant(WORD, _SPINS)), look, lie_down)

        builder.position_at_end(lie_down)
        # First set the flag, then read OPEN again: the caller first opens a job, then reads the flags.
        put(builder, ONE, worker)
        news = builder.or_(get(builder, fields[words.STOP]), get(builder, fields[words.OPEN]))
        with builder.if_then(builder.icmp_signed("!=", news, ZERO)):
            ring(builder, address, worker)  # its own bell, unless the caller has rung it already
        builder.branch(sleep)

        builder.position_at_end(sleep)
        signature = ir.FunctionType(ir.IntType(32), [POINTER, ir.IntType(32)])
        acquire = builder.inttoptr(builder.load(fields[words.ACQUIRE]), signature.as_pointer())
        bell = builder.load(builder.gep(worker, [ir.Constant(WORD, words.BELL)]))
        builder.call(acquire, [builder.inttoptr(bell, POINTER), ir.Constant(ir.IntType(32), 1)])
        awake = builder.block
        builder.branch(look)

        builder.position_at_end(join)
        # First add to ACTIVE, then read OPEN again: the caller first closes the job, then waits until ACTIVE is 0.
        builder.atomic_rmw("add", fields[words.ACTIVE], ONE, "seq_cst")
        builder.cbranch(builder.icmp_signed("==", get(builder, fields[words.OPEN]), job), work, leave)

        builder.position_at_end(work)
        function = builder.inttoptr(builder.load(fields[words.WORK]), _WORKER.as_pointer())
        line = builder.sdiv(builder.sub(place, address), ir.Constant(WORD, 8 * words.LINE))
        number = builder.sub(line, ir.Constant(WORD, words.WORKERS // words.LINE - 1))  # that of the caller is 0
        builder.call(function, [builder.inttoptr(builder.load(fields[words.DATA]), POINTER), number])
        builder.branch(leave)

        builder.position_at_end(leave)
        builder.atomic_rmw("sub", fields[words.ACTIVE], ONE, "seq_cst")
        builder.branch(look)

        for block, counted, served in ((before, ZERO, ZERO), (rested, longer, last), (awake, ZERO, last)):
            idle.add_incoming(counted, block)
            last.add_incoming(served, block)
        idle.add_incoming(ZERO, leave)
        last.add_incoming(job, leave)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@entry
def _work(address, place):
    if address != 0:
        _serve(address, place)


@entry
def _ring_all(address):
    if address != 0:
        _ring_workers(address)


def _parallel_plain(body, chunks, team, arguments):
    for chunk in range(chunks):
        body(chunk, chunks, *arguments)


@intrinsic
def _parallel(typing_context, body, chunks, team, arguments):
    if not isinstance(body, types.Dispatcher) or not isinstance(arguments, types.BaseTuple):
        raise TypingError("parallel(body, chunks, team, arguments): body is compiled code, arguments a tuple")

    def codegen(context, builder, signature, values):
        _, chunks, team, packed = values
        shared = cgutils.alloca_once(builder, ir.LiteralStructType([*[WORD] * 3, packed.type, _TAKEN]))
        # Chunks, shares, whether one has failed, the arguments, and how many chunks of each share are taken.
        fields = [cgutils.gep_inbounds(builder, shared, 0, i) for i in range(5)]
        several = builder.and_(builder.icmp_signed("!=", team, ZERO), builder.icmp_signed(">", chunks, ONE))
        shares = cgutils.alloca_once_value(builder, ONE)
        with builder.if_then(several):
            threads = builder.add(builder.load(word_at(builder, team, words.COUNT)), ONE)
            is_few = builder.icmp_signed("<", threads, ir.Constant(WORD, _SHARES))
            builder.store(builder.select(is_few, threads, ir.Constant(WORD, _SHARES)), shares)
        for field, value in zip(fields, (chunks, builder.load(shares), ZERO, packed), strict=False):
            builder.store(value, field)
        with cgutils.for_range(builder, builder.load(shares)) as loop:
            builder.store(ZERO, builder.gep(fields[4], [ZERO, loop.index, ZERO]))
        worker = _worker(context, builder, signature.args[0].dispatcher, arguments, shared.type)
        data = builder.bitcast(shared, POINTER)
        with builder.if_else(several) as (together, alone):
            with together:
                _call_together(builder, worker, data, team)
            with alone:
                builder.call(worker, [data, ZERO])
        with cgutils.if_unlikely(builder, builder.icmp_signed("!=", builder.load(fields[2]), ZERO)):
            context.call_conv.return_user_exc(builder, MemoryError, ("a kernel ran out of memory, or raised an error",))
        return context.get_dummy_value()

    return types.void(body, types.intp, types.intp, arguments), codegen


parallel = _parallel_plain if config.DISABLE_JIT else _parallel


def _worker(context, builder, body, arguments, shared_type):
    """Write the function `void worker(data, number)`, which does chunks until none is left.

    It begins with the share of the chunks that belongs to the number of its thread, and then helps with the others.
    """
    inner = (types.intp, types.intp, *arguments.types)
    resolved = context.typing_context.resolve_function_type(types.Dispatcher(body), inner, {})
    compiled = body.get_compile_result(resolved)
    context.add_linking_libs([compiled.library])
    worker = ir.Function(builder.module, _WORKER, builder.module.get_unique_name("tinyvit_worker"))
    worker.linkage = "internal"
    names = ("", "share", "look", "take", "work", "fail", "next", "done")
    begin, share, look, take, work, failed, following, done = map(worker.append_basic_block, names)

    inside = ir.IRBuilder(begin)
    shared = inside.bitcast(worker.args[0], shared_type)
    fields = [cgutils.gep_inbounds(inside, shared, 0, i) for i in range(5)]
    chunks, shares, packed = inside.load(fields[0]), inside.load(fields[1]), inside.load(fields[3])
    unpacked = cgutils.unpack_tuple(inside, packed, len(arguments.types))
    unpacked = [_borrowed(context, inside, kind, value) for kind, value in zip(arguments, unpacked, strict=True)]
    inside.branch(share)

    inside.position_at_end(share)
    tried = inside.phi(WORD)
    tried.add_incoming(ZERO, begin)
    number = inside.urem(inside.add(worker.args[1], tried), shares)
    start = inside.sdiv(inside.mul(chunks, number), shares)
    stop = inside.sdiv(inside.mul(chunks, inside.add(number, ONE)), shares)
    taken = inside.gep(fields[4], [ZERO, number, ZERO])
    inside.branch(look)

    inside.position_at_end(look)  # reading is cheaper than adding where nothing is left
    is_left = inside.icmp_signed("<", inside.add(start, get(inside, taken)), stop)
    inside.cbranch(is_left, take, following)

    inside.position_at_end(take)
    chunk = inside.add(start, inside.atomic_rmw("add", taken, ONE, "seq_cst"))
    inside.cbranch(inside.icmp_signed("<", chunk, stop), work, following)

    inside.position_at_end(following)
    more = inside.add(tried, ONE)
    tried.add_incoming(more, following)
    inside.cbranch(inside.icmp_signed("<", more, shares), share, done)

    inside.position_at_end(work)
    given = [chunk, chunks, *unpacked]
    status, _ = context.call_internal_no_propagate(inside, compiled.fndesc, compiled.signature, given)
    inside.cbranch(status.is_error, failed, look)
    inside.position_at_end(failed)
    inside.store(ONE, fields[2])
    inside.branch(look)
    inside.position_at_end(done)
    inside.ret_void()
    return worker


def _borrowed(context, builder, kind, value):
    """Return an array without its reference count, to which all threads would otherwise write for each row."""
    if not isinstance(kind, types.Array):
        return value
    array = context.make_array(kind)(context, builder, value)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    return array._getvalue()


def _call_together(builder, worker, data, team):
    """Open the job to the workers, take part in it, close it, and wait for those that are still working on it.

    Where the workers serve another caller, the caller does all chunks itself.
    """
    fields = {
        i: word_at(builder, team, i) for i in (words.BUSY, words.OPEN, words.ACTIVE, words.WORK, words.DATA, words.JOBS)
    }
    taken = builder.extract_value(builder.cmpxchg(fields[words.BUSY], ZERO, ONE, "seq_cst", "seq_cst"), 1)
    with builder.if_else(taken) as (free, busy):
        with free:
            builder.store(builder.ptrtoint(worker, WORD), fields[words.WORK])
            builder.store(builder.ptrtoint(data, WORD), fields[words.DATA])
            job = builder.add(builder.load(fields[words.JOBS]), ONE)
            builder.store(job, fields[words.JOBS])
            put(builder, job, fields[words.OPEN])
            ring_each(builder, team)
            builder.call(worker, [data, ZERO])
            put(builder, ZERO, fields[words.OPEN])
            wait, finished = builder.append_basic_block("wait"), builder.append_basic_block("finished")
            closed = builder.block
            builder.branch(wait)
            builder.position_at_end(wait)
            waited = builder.phi(WORD)
            waited.add_incoming(ZERO, closed)
            pause(builder)
            give_way(builder, team, waited)
            longer = builder.add(waited, ONE)
            waited.add_incoming(longer, builder.block)
            builder.cbranch(builder.icmp_signed("==", get(builder, fields[words.ACTIVE]), ZERO), finished, wait)
            builder.position_at_end(finished)
            put(builder, ZERO, fields[words.BUSY])
        with busy:
            builder.call(worker, [data, ZERO])
