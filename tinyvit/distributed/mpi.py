"""A group of processes that communicate over MPI."""

import io
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ..backend import BFLOAT16, Array, Group, Stopped, Sum, namespace_of, to_device_of, to_host
from ..backend.group import Node
from ..backend.terminal import note, printable
from ..optim.tree import add_up, nodes_within, shards_of
from .watch import Watcher, claim, claims_without_folder

CLAIMS = ".ended"  # the file in a run folder that the process creates which is the reason for the end of the job
LOGS = "logs"  # the folder in it with what all processes but the first print
_TOGETHER = 1.5  # seconds within which all processes must fail for the same reason
_SPINS, _PAUSE = 20, 5e-5  # how often to ask for news at once, and the seconds to sleep between later questions

Value = TypeVar("Value")


class MPIGroup(Group):
    """The processes that mpiexec has started.

    Parameters
    ----------
    mpi : the module `mpi4py.MPI`.
    watcher : prints a message if this process is killed; None for no message.

    Attributes
    ----------
    comm : the communicator of all processes.
    local : the communicator of the processes on this machine.
    """

    divides = True

    def __init__(self, mpi: Any, watcher: Watcher | None = None) -> None:
        self.mpi, self._watcher, self.seconds = mpi, watcher, 0.0
        self.comm = mpi.COMM_WORLD.Dup()
        self._ends = mpi.COMM_WORLD.Dup()  # for the end only, whatever the other processes wait for by then
        self.rank, self.size = self.comm.rank, self.comm.size
        self.local = self.comm.Split_type(mpi.COMM_TYPE_SHARED)
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # MPI waits by asking again and again, which takes processors from those processes that still compute.
        self._sleeps = self.local.size > processors
        self._claims = claims_without_folder()
        if self.local.rank == 0:
            with suppress(OSError):
                self._claims.unlink(missing_ok=True)  # of a job whose launcher had the same number
        self._streams = sys.stdout, sys.stderr
        self._log: Any = None
        self._has_failed = False
        self._add_narrow: Any = None  # the operation of MPI that adds numbers in bfloat16, for which it has no datatype
        if not self.is_first:
            sys.stdout = sys.stderr = io.StringIO()  # until there is a folder for it

    # Communication

    def wait(self, request: Any) -> None:
        """Wait until a communication is complete."""
        questions = 0
        while not request.Test():
            questions += 1
            time.sleep(_PAUSE if self._sleeps and questions > _SPINS else 0)

    def barrier(self) -> None:
        with self.timed():
            self.wait(self.comm.Ibarrier())

    def broadcast(self, value: Value) -> Value:
        self.barrier()  # which waits more patiently
        with self.timed():
            return self.comm.bcast(value, root=0)

    def gather(self, value: Value) -> list[Value]:
        self.barrier()
        with self.timed():
            return self.comm.allgather(value)

    def collect(self, work: Callable[[], Value]) -> list[Value]:
        found: tuple[Any, bool]
        try:
            found = work(), False
        except Stopped:
            found = None, True
        everywhere = self.gather(found)
        if any(is_stopped for _, is_stopped in everywhere):
            raise Stopped
        return [cast(Value, value) for value, _ in everywhere]

    def any(self, value: bool) -> bool:
        flag = np.array([value], np.int32)
        with self.timed():
            self.wait(self.comm.Iallreduce(self.mpi.IN_PLACE, flag, self.mpi.MAX))
        return bool(flag[0])

    def sum_exact(self, partials: Mapping[Node, Array], shards: int) -> Array:
        """Return the sum over all shards in the fixed tree, see `Group.sum_exact`.

        Each process adds up one slice of the arrays: it receives this slice of the partial sums of all processes, and
        sends the sum to all. So each process sends about two arrays, however many processes there are.
        """
        like = next(iter(partials.values()))
        whole, bounds = (0, shards), slices(like.size, self.size)
        lengths = np.diff(bounds)
        own = int(lengths[self.rank])
        nodes = [nodes_within(shards_of(rank, self.size, shards), whole) for rank in range(self.size)]
        with self.timed():
            sent = packed([partials[node] for node in nodes[self.rank]], bounds)
            counts = np.array([len(some) * own for some in nodes])
            received = self.exchange(sent, len(partials) * lengths, counts)
            slice_of = {node: received[i * own : (i + 1) * own] for i, node in enumerate(chain(*nodes))}
            total = self.spread(add_up(whole, slice_of.get), lengths)
        return to_device_of(total, like)

    def exchange(self, sent: Array, counts: NDArray, received_counts: NDArray) -> Array:
        """Send a part of an array, float32, to each process, by rank; return the parts that came from them."""
        received = np.empty(received_counts.sum(), np.float32)
        outgoing, incoming = parts_of(to_host(sent), counts), parts_of(received, received_counts)
        others = [rank for rank in range(self.size) if rank != self.rank]
        # One message to each process: MPICH's Ialltoallv took 50 ms for 11 MB within one machine, these take 1 ms.
        requests = [self.comm.Irecv([incoming[rank], self.mpi.FLOAT], rank) for rank in others]
        requests += [self.comm.Isend([outgoing[rank], self.mpi.FLOAT], rank) for rank in others]
        incoming[self.rank][...] = outgoing[self.rank]
        for request in requests:
            self.wait(request)
        return received

    def spread(self, part: Array, lengths: NDArray) -> Array:
        """Return the parts, float32, that all processes have given, whose lengths are known, as one array."""
        total = np.empty(lengths.sum(), np.float32)
        own = [to_host(part), part.size, self.mpi.FLOAT]
        self.wait(self.comm.Iallgatherv(own, [total, (lengths, starts(lengths)), self.mpi.FLOAT]))
        return total

    def start_sum(self, array: Array, wire: str) -> Sum:
        with self.timed():
            return MPISum(self, array, wire)

    def sum_of(self, wire: str) -> tuple[Any, Any]:
        """Return the datatype of numbers that are sent as `wire`, and the operation that adds them up."""
        if wire == "float32":
            return self.mpi.FLOAT, self.mpi.SUM
        if self._add_narrow is None:
            self._add_narrow = self.mpi.Op.Create(add_narrow, commute=True)
        return self.mpi.UINT16_T, self._add_narrow

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time within this block as communication."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    # The beginning and the end

    def began(self, folder: Path, resume: str) -> None:
        self._claims = folder / CLAIMS
        if self.is_first:
            with suppress(OSError):  # a finished run may lie on a read-only disk
                self._claims.unlink(missing_ok=True)
                (folder / LOGS).mkdir(exist_ok=True)
        self.barrier()
        if self._watcher:
            self._watcher.tell(self._claims, killed(self.rank, f"; continue with: {resume}"))
        if not self.is_first:
            self._print_into(folder / LOGS / f"rank-{self.rank}.log")

    def _print_into(self, path: Path) -> None:
        """Write what this process prints into a file from now on, with what it has printed so far."""
        before = sys.stdout
        try:
            log = open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        except OSError:  # this machine has no such folder
            log = open(os.devnull, "w")  # noqa: SIM115
        log.write(f"rank {self.rank} of {self.size}, process {os.getpid()} on {platform.node()}\n")
        if isinstance(before, io.StringIO):
            log.write(before.getvalue())
        self._log = sys.stdout = sys.stderr = log

    def finish(self) -> None:
        """Wait until all processes end by themselves; then take note of it.

        Until then the watcher of a process that is killed says so, also if that process only waits for the others.
        """
        if not self._has_failed:
            self.wait(self._ends.Ibarrier())
        self.ended()

    def ended(self) -> None:
        """Take note that this process ends by itself."""
        if self._log is not None:
            sys.stdout, sys.stderr = self._streams
            self._log.close()
        if self._watcher:
            self._watcher.ended()

    def failed(self, status: int, message: str) -> None:
        """Print why this process ends, once for all processes, and end them all.

        If all of them fail, for the same reason, the first one prints it, and each ends by itself. Otherwise the others
        would wait for this process for ever: it prints its reason, and MPI ends all processes.
        """
        self._has_failed = True
        if self._all_fail():
            if self.is_first:
                note(message)
            self.ended()
            return
        if claim(self._claims, os.getpid()):
            sys.stderr = self._streams[1]  # this message is for everybody
            note(f"{message} (on rank {self.rank})")
        else:
            time.sleep(2 * _TOGETHER)  # the other process is about to end the job
        self.ended()
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPICH prints a line of its own, which says nothing more
        self.comm.Abort(status)

    def _all_fail(self) -> bool:
        request, deadline = self._ends.Ibarrier(), time.monotonic() + _TOGETHER
        while not request.Test():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def killed(rank: int, and_now: str) -> str:
    """Return the line that says that this process was killed, for its watcher to print."""
    who = f"rank {rank} (process {os.getpid()} on {platform.node()})"
    return printable(f"tinyvit: error: {who} was killed{and_now}", field=True)


class MPISum(Sum):
    """A sum by a non-blocking Allreduce, which goes on whenever this process asks for news."""

    def __init__(self, group: MPIGroup, array: Array, wire: str) -> None:
        self._group, self._array, self._wire = group, array, wire
        host = to_host(array)
        self._sent = host if wire == "float32" else host.astype(BFLOAT16).view(np.uint16)
        datatype, add = group.sum_of(wire)
        self._request = group.comm.Iallreduce(group.mpi.IN_PLACE, [self._sent, self._sent.size, datatype], add)

    def advance(self) -> None:
        with self._group.timed():
            self._request.Test()

    def wait(self) -> None:
        with self._group.timed():
            self._group.wait(self._request)
            if self._wire != "float32":
                self._array[...] = to_device_of(self._sent.view(BFLOAT16).astype(np.float32), self._array)
            elif self._sent is not self._array:
                self._array[...] = to_device_of(self._sent, self._array)


def add_narrow(given: Any, total: Any, datatype: Any) -> None:
    """Add numbers in bfloat16 to others, as an operation of MPI: each sum is made in float32 and rounded."""
    x, y = np.frombuffer(given, BFLOAT16), np.frombuffer(total, BFLOAT16)
    y[...] = (x.astype(np.float32) + y.astype(np.float32)).astype(BFLOAT16)


def slices(length: int, size: int) -> NDArray[np.int64]:
    """Return where each of `size` slices of an array of this length begins, and its end: int64 (size + 1,)."""
    return length * np.arange(size + 1, dtype=np.int64) // size


def starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of several parts begins, from their lengths (n,)."""
    return np.cumsum(counts) - counts


def parts_of(array: Array, counts: NDArray[np.int64]) -> list[Array]:
    """Return consecutive parts of an array, from their lengths (n,)."""
    return [array[begin : begin + count] for begin, count in zip(starts(counts), counts, strict=True)]


def packed(arrays: list[Array], bounds: NDArray[np.int64]) -> Array:
    """Return first the first slices of all arrays, then the second ones, and so on, as one array."""
    if len(arrays) == 1:
        return arrays[0]
    xp = namespace_of(arrays[0])
    return xp.concatenate([array[begin:end] for begin, end in pairwise(bounds.tolist()) for array in arrays])
