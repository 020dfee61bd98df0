"""The processes that train together. Here it is a single one; `tinyvit.distributed` has groups of several.

All processes of a group run the same program on different parts of the data, and meet in the methods below: each of
them must be called by all processes, in the same order.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from .devices import Array
from .terminal import note

Node = tuple[int, int]  # a node of the tree of sums over the shards first, ..., last - 1, see `tinyvit.optim.tree`
Value = TypeVar("Value")


class Stopped(Exception):
    """Raised by the callback that runs after each batch of a measurement, once a signal to stop has come."""


class Sum:
    """A sum over all processes that is made in the background; with one process it is complete at once.

    Until `wait` has returned, the array that is summed must be neither read nor written.
    """

    def advance(self) -> None:
        """Advance the communication, without waiting for it."""

    def wait(self) -> None:
        """Wait until the array holds the sum."""


class Group:
    """A group of one process.

    Attributes
    ----------
    rank : the number of this process, from 0. Process 0 writes files and shows progress.
    size : the number of processes.
    divides : whether batches are divided into shards also where the recipe does not ask for it.
    seconds : the time that this process has spent in communication, waiting for others included.
    """

    rank, size, divides = 0, 1, False
    seconds = 0.0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def broadcast(self, value: Value) -> Value:
        """Return the value that process 0 has given."""
        return value

    def gather(self, value: Value) -> list[Value]:
        """Return the values that all processes have given, by rank."""
        return [value]

    def collect(self, work: Callable[[], Value]) -> list[Value]:
        """Call `work` and return what it returned in all processes; if it raised `Stopped` in one, raise it in all."""
        return [work()]

    def any(self, value: bool) -> bool:
        """Return whether the value is true in some process."""
        return value

    def sum_exact(self, partials: Mapping[Node, Array], shards: int) -> Array:
        """Return the sum over all shards, added up in the fixed tree: its bits do not depend on `size`.

        Parameters
        ----------
        partials : float32 (L,) on one device, the sums that this process has, of the nodes of its shards. They may be
            modified.
        shards : the number of shards of all processes.
        """
        return partials[0, shards]

    def start_sum(self, array: Array, wire: str) -> Sum:
        """Begin to replace an array, float32 (L,), by the sum of those of all processes, which is made in any order.

        `wire` is the dtype in which numbers are sent and added, "float32" or "bfloat16".
        """
        return Sum()

    def barrier(self) -> None:
        """Wait until all processes are here."""

    def began(self, folder: Path, resume: str) -> None:
        """Take note that the run in `folder` begins, and of the command that resumes it if a process is killed."""

    def failed(self, status: int, message: str) -> None:
        """Print why this process ends with an error; a group of several sees to it that all processes end."""
        note(message)


# The environment in which launchers tell a process its rank and the number of processes; slurm sets the first two for
# programs of MPICH, and Open MPI its own.
_LAUNCHED = (("PMI_RANK", "PMI_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))


def launched() -> tuple[int, int]:
    """Return the rank of this process and the number of those that mpiexec has started; (0, 1) without mpiexec."""
    for rank, size in _LAUNCHED:
        values = os.environ.get(rank, ""), os.environ.get(size, "")
        if all(value.isdecimal() for value in values):
            return int(values[0]), int(values[1])
    return 0, 1


_current = Group()


def current_group() -> Group:
    """Return the group that this process belongs to."""
    return _current


def set_current_group(group: Group) -> None:
    """Make `group` the one that this process belongs to, until it ends."""
    global _current
    _current = group
