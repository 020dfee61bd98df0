"""A group of processes with a GPU each, which add up gradients by NCCL."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import BFLOAT16, Array, Sum, gpu
from .mpi import MPIGroup, parts_of
from .watch import Watcher

_BFLOAT16 = 9  # ncclBfloat16 of nccl.h, which CuPy does not name


class NcclGroup(MPIGroup):
    """The processes that mpiexec has started, with a GPU each. MPI starts NCCL and carries what lies on the host.

    The current device of CuPy must be the GPU of this process.
    """

    def __init__(self, mpi: Any, watcher: Watcher | None = None) -> None:
        super().__init__(mpi, watcher)
        self._cupy = gpu()[0]
        self._nccl = self._cupy.cuda.nccl
        self._stream: Any = None  # where sums are made while the current stream computes
        identity = self._nccl.get_unique_id() if self.is_first else None
        self._gpus = self._nccl.NcclCommunicator(self.size, self.broadcast(identity), self.rank)

    def _each(self, calls: list[tuple[Any, Array, int]]) -> None:
        """Make all calls at once, each of which sends an array to a process or receives one from it."""
        stream = self._cupy.cuda.get_current_stream().ptr
        self._nccl.groupStart()
        for call, array, rank in calls:
            if array.size:
                call(array.data.ptr, array.size, self._nccl.NCCL_FLOAT32, rank, stream)
        self._nccl.groupEnd()

    def exchange(self, sent: Array, counts: NDArray, received_counts: NDArray) -> Array:
        received = self._cupy.empty(int(received_counts.sum()), np.float32)
        calls = [(self._gpus.send, part, rank) for rank, part in enumerate(parts_of(sent, counts))]
        calls += [(self._gpus.recv, part, rank) for rank, part in enumerate(parts_of(received, received_counts))]
        self._each(calls)
        return received

    def spread(self, part: Array, lengths: NDArray) -> Array:
        total = self._cupy.empty(int(lengths.sum()), np.float32)
        calls = [(self._gpus.send, part, rank) for rank in range(self.size)]
        calls += [(self._gpus.recv, piece, rank) for rank, piece in enumerate(parts_of(total, lengths))]
        self._each(calls)
        return total

    def start_sum(self, array: Array, wire: str) -> Sum:
        current = self._cupy.cuda.get_current_stream()
        if self._stream is None:
            self._stream = self._cupy.cuda.Stream(non_blocking=True)
        sent = array if wire == "float32" else array.astype(BFLOAT16)
        self._stream.wait_event(current.record())  # the gradients are there
        datatype, pointer = self._nccl.NCCL_FLOAT32 if wire == "float32" else _BFLOAT16, sent.data.ptr
        self._gpus.allReduce(pointer, pointer, sent.size, datatype, self._nccl.NCCL_SUM, self._stream.ptr)
        return NcclSum(current, self._stream.record(), array, sent)


class NcclSum(Sum):
    """A sum on a stream of its own, which goes on by itself."""

    def __init__(self, stream: Any, complete: Any, array: Array, sent: Array) -> None:
        self._stream, self._complete, self._array, self._sent = stream, complete, array, sent

    def wait(self) -> None:
        self._stream.wait_event(self._complete)
        if self._sent is not self._array:
            self._array[...] = self._sent  # which becomes float32
