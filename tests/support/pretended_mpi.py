"""MPI among the threads of one process: the calls that `tinyvit.distributed.mpi` makes, and nothing more.

It checks what MPI leaves undefined: all processes must make the same calls in the same order, and the counts of what is
sent must be those of what is received.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np


class Done:
    """A communication that is complete."""

    def Test(self) -> bool:
        return True


class Reduction:
    """A sum that is complete when it has been asked for the third time; until then its array holds other numbers."""

    def __init__(self, array: np.ndarray, result: np.ndarray) -> None:
        self._array, self._result, self._questions = array, result, 0
        array.view(np.uint8)[...] = 255  # NaN, as floating-point numbers

    def Test(self) -> bool:
        self._questions += 1
        if self._questions == 3:
            self._array[...] = self._result
        return self._questions >= 3


class Message:
    """A message that one thread waits for."""

    def __init__(self, sent: deque[np.ndarray], array: np.ndarray) -> None:
        self._sent, self._array = sent, array

    def Test(self) -> bool:
        if not self._sent:
            return False
        found = self._sent.popleft()
        assert found.shape == self._array.shape
        self._array[...] = found
        return True


class World:
    """What the threads share: a place for what each of them brings to a call, and the messages between two of them."""

    def __init__(self, size: int) -> None:
        self.size, self.brought = size, [None] * size
        self.sent = {(source, to): deque() for source in range(size) for to in range(size)}
        self.barrier = threading.Barrier(size, timeout=60)


class Communicator:
    """The communicator of one thread."""

    def __init__(self, world: World, rank: int) -> None:
        self._world, self.rank, self.size = world, rank, world.size

    def Dup(self) -> "Communicator":
        return self

    def Split_type(self, kind: Any) -> "Communicator":
        return self

    def _meet(self, name: str, value: Any) -> list[Any]:
        """Bring a value; return those of all threads, which must be in the same call."""
        self._world.brought[self.rank] = (name, value)
        self._world.barrier.wait()
        found = list(self._world.brought)
        self._world.barrier.wait()
        assert {call for call, _ in found} == {name}
        return [other for _, other in found]

    def Ibarrier(self) -> Done:
        self._meet("barrier", None)
        return Done()

    def bcast(self, value: Any, root: int) -> Any:
        return self._meet("bcast", value)[root]

    def allgather(self, value: Any) -> list[Any]:
        return self._meet("allgather", value)

    def Iallreduce(self, in_place: Any, given: Any, operation: Any) -> Reduction:
        """Reduce arrays, which must have the same size and datatype everywhere, by rank."""
        array, size, datatype = given if isinstance(given, list) else (given, given.size, given.dtype.name)
        assert array.size == size
        assert datatype == array.dtype.name
        assert array.flags.c_contiguous
        found = self._meet("allreduce", (array.copy(), datatype, type(operation)))
        assert len({(theirs.size, *rest) for theirs, *rest in found}) == 1
        result = found[0][0].copy()
        for theirs, *_ in found[1:]:
            if isinstance(operation, np.ufunc):
                operation(result, theirs, out=result)
            else:
                operation(memoryview(theirs), memoryview(result), datatype)
        return Reduction(array, result)

    def Isend(self, given: list[Any], to: int) -> Done:
        array, datatype = given
        assert datatype == array.dtype.name
        assert array.flags.c_contiguous
        assert to != self.rank
        self._world.sent[self.rank, to].append(array.copy())
        return Done()

    def Irecv(self, given: list[Any], source: int) -> "Message":
        array, datatype = given
        assert datatype == array.dtype.name
        assert array.flags.c_contiguous
        array[...] = np.nan  # until the message is there
        return Message(self._world.sent[source, self.rank], array)

    def Iallgatherv(self, outgoing: list[Any], incoming: list[Any]) -> Done:
        part, size, _ = outgoing
        assert part.size == size
        received, (counts, places), _ = incoming
        for theirs, count, place in zip(self._meet("allgatherv", part.copy()), counts, places, strict=True):
            assert theirs.size == count
            received[place : place + count] = theirs
        return Done()


class Op:
    """Operations of users."""

    @staticmethod
    def Create(function: Callable[[Any, Any, Any], None], commute: bool) -> Callable[[Any, Any, Any], None]:
        return function


class PretendedMPI:
    """What one thread takes for the module `mpi4py.MPI`."""

    COMM_TYPE_SHARED = IN_PLACE = object()
    FLOAT, UINT16_T = "float32", "uint16"
    MAX, SUM = np.maximum, np.add
    Op = Op

    def __init__(self, world: World, rank: int) -> None:
        self.COMM_WORLD = Communicator(world, rank)

    @staticmethod
    def Get_library_version() -> str:
        return "Open MPI v5\nof 2027"


def in_threads(size: int, work: Callable[[PretendedMPI], Any]) -> list[Any]:
    """Call `work` in `size` threads, each with its module, and return the results by rank."""
    world, results, errors = World(size), [None] * size, []

    def run(rank: int) -> None:
        try:
            results[rank] = work(PretendedMPI(world, rank))
        except BaseException as error:
            errors.append(error)
            world.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return results
