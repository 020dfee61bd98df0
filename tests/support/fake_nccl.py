"""NCCL among the threads of one process, `cupy.cuda.nccl` of the stand-in for CuPy, with streams that need waiting.

What NCCL leaves undefined is an error here: memory that is no array on the device, or too short, or of another dtype;
counts that differ between sender and receiver; calls in another order on another process; a communicator that was not
made from the one identity. A result is there only when the current stream has waited for the stream that makes it.
"""

import ctypes
import gc
import threading
import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import fake_cupy
import numpy as np
from pretended_mpi import World

from tinyvit.backend import BFLOAT16

FLOAT32, BFLOAT16_OF_NCCL, SUM = 7, 9, 0  # the numbers of nccl.h
_DTYPES = {FLOAT32: np.dtype(np.float32), BFLOAT16_OF_NCCL: np.dtype(BFLOAT16)}
_ID_BYTES = 128


def memory(pointer: int, count: int, datatype: int) -> np.ndarray:
    """Return the part of an array on the device that begins at `pointer`."""
    assert type(pointer) is int
    assert type(count) is int
    assert count > 0
    assert datatype in _DTYPES, f"unknown datatype {datatype}"
    dtype = _DTYPES[datatype]
    end = pointer + count * dtype.itemsize
    for x in gc.get_objects():
        if type(x) is fake_cupy.ndarray and x.dtype == dtype and x.flags.c_contiguous:
            begin = x.data.ptr
            if begin <= pointer and end <= begin + x.nbytes:
                buffer = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(pointer)
                return np.frombuffer(buffer, dtype)
    raise AssertionError(f"{count} numbers of {dtype} are not in one array on the device")


class Stream:
    """A stream, whose work is done when another one waits for an event that was recorded after it."""

    def __init__(self, non_blocking: bool = False) -> None:
        self.ptr = id(self)
        self.work: list[Callable[[], None]] = []
        self.has_waited = False
        STREAMS[self.ptr] = self

    def record(self) -> tuple["Stream", int]:
        return self, len(self.work)

    def wait_event(self, event: tuple["Stream", int]) -> None:
        stream, count = event
        self.has_waited = True
        for i in range(count):
            stream.work[i]()
            stream.work[i] = _nothing

    def is_capturing(self) -> bool:
        return False


def _nothing() -> None:
    pass


STREAMS: dict[int, Stream] = {}
_OWN = threading.local()  # the current stream of each thread, which is a process here, and its group of calls


def current_stream() -> Stream:
    if not hasattr(_OWN, "stream"):
        _OWN.stream = Stream()
    return _OWN.stream


class Library:
    """What all processes share: the identities that were handed out, and what each brings to a call."""

    def __init__(self, size: int) -> None:
        self.world, self.identities = World(size), []  # type: ignore[var-annotated]
        self.calls: dict[int, list[str]] = defaultdict(list)  # by rank


class NcclCommunicator:
    """The communicator of one process."""

    library: Library

    def __init__(self, size: int, identity: tuple[int, ...], rank: int) -> None:
        assert self.library.identities == [identity], "the identity must come from process 0"
        assert type(identity) is tuple
        assert size == self.library.world.size
        self._rank, self._size = rank, size
        assert sorted(self._meet("rank", rank)) == list(range(size))

    def _meet(self, name: str, value: Any) -> list[Any]:
        world = self.library.world
        world.brought[self._rank] = (name, value)
        world.barrier.wait()
        found = list(world.brought)
        world.barrier.wait()
        assert {call for call, _ in found} == {name}
        self.library.calls[self._rank].append(name)
        return [theirs for _, theirs in found]

    def allReduce(self, source: int, target: int, count: int, datatype: int, operation: int, stream: int) -> None:
        assert operation == SUM
        given, result = memory(source, count, datatype), memory(target, count, datatype)
        on = STREAMS[stream]
        assert on is not current_stream()
        assert on.has_waited, "the stream has not waited for the gradients"
        on.has_waited = False
        found = self._meet("allReduce", (given.copy(), datatype))
        assert len({(values.size, kind) for values, kind in found}) == 1
        total = found[0][0].copy()
        for values, _ in found[1:]:
            total += values
        result[...] = np.nan
        on.work.append(lambda: result.__setitem__(..., total))

    def send(self, source: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._add("send", source, count, datatype, peer, stream)

    def recv(self, target: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._add("recv", target, count, datatype, peer, stream)

    def _add(self, name: str, pointer: int, count: int, datatype: int, peer: int, stream: int) -> None:
        assert 0 <= peer < self._size
        assert STREAMS[stream] is current_stream()
        assert _OWN.group is not None, "outside a group, a process would wait for itself"
        assert (name, peer) not in _OWN.group
        _OWN.group[name, peer] = memory(pointer, count, datatype)
        _OWN.communicator = self

    def end_group(self, calls: dict[tuple[str, int], np.ndarray]) -> None:
        sent = {peer: array.copy() for (name, peer), array in calls.items() if name == "send"}
        everywhere = self._meet("group", sent)
        for rank, theirs in enumerate(everywhere):
            target, given = calls.get(("recv", rank)), theirs.get(self._rank)
            assert (target is None) == (given is None), f"process {rank} sends and {self._rank} does not receive"
            if target is not None and given is not None:
                assert (target.size, target.dtype) == (given.size, given.dtype)
                target[...] = given


def _start_group() -> None:
    _OWN.group, _OWN.communicator = {}, None


def module(size: int, cupy: types.ModuleType) -> Library:
    """Give the stand-in for CuPy streams and the module `cuda.nccl` for `size` processes; return what these share."""
    library = Library(size)

    def get_unique_id() -> tuple[int, ...]:
        library.identities.append(tuple(np.random.default_rng(len(library.identities)).integers(-128, 128, _ID_BYTES)))
        return library.identities[-1]

    def end_group() -> None:
        calls, communicator = _OWN.group, _OWN.communicator
        _OWN.group = None
        assert communicator is not None, "an empty group"
        communicator.end_group(calls)

    nccl = types.SimpleNamespace(
        NCCL_FLOAT32=FLOAT32,
        NCCL_SUM=SUM,
        get_unique_id=get_unique_id,
        groupStart=_start_group,
        groupEnd=end_group,
        NcclCommunicator=type("NcclCommunicator", (NcclCommunicator,), {"library": library}),
    )
    cupy.cuda.__dict__.update(nccl=nccl, Stream=Stream, get_current_stream=current_stream)
    return library
