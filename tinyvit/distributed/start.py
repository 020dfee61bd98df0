"""Join the group of processes that mpiexec has started."""

import atexit
import io
import os
import shlex
import sys
from typing import Any

from ..backend import check_device, default_device, launched, limit_threads, set_current_group, set_default_device
from ..errors import TinyvitError
from .mpi import MPIGroup, killed
from .watch import Watcher, claims_without_folder


class DistributedError(TinyvitError):
    """Several processes cannot train together here."""


def join_group() -> MPIGroup:
    """Start MPI, and return the group of this process. Raises DistributedError without mpi4py or an MPI library.

    The processes of a machine share its processors: each has as many threads as its share, unless TINYVIT_THREADS says
    otherwise. If they train on GPUs, each takes one of its own, and gradients are added by NCCL.
    """
    watcher = Watcher()
    rank, size = launched()
    if size > 1:
        again = f"mpiexec -n {size} tinyvit {shlex.join(sys.argv[1:])}"
        watcher.tell(claims_without_folder(), killed(rank, f" before the run began; start it again: {again}"))
    try:
        group = MPIGroup(_load_mpi(), watcher)
        require_all(group)
        require_equal(group, sys.argv[1:])
        if default_device().startswith("cuda"):
            group = _on_gpus(group, watcher)
    except BaseException as error:
        watcher.ended()
        if rank and isinstance(error, KeyboardInterrupt):
            sys.stderr = io.StringIO()  # the first process says that all of them were stopped
        raise
    _share_processors(group)
    atexit.register(group.finish)
    set_current_group(group)
    return group


def _load_mpi() -> Any:
    os.environ.setdefault("MPIR_CVAR_SUPPRESS_ABORT_MESSAGE", "1")  # MPICH: the process that ends the job says why
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        first_line = str(error).partition("\n")[0]
        raise DistributedError(
            f"--distributed needs mpi4py and an MPI library ({first_line}): pip install 'tinyvit[mpi]', or mpi4py "
            "beside the MPI of this machine"
        ) from error
    return MPI


def require_all(group: MPIGroup) -> None:
    """Raise DistributedError if the MPI library does not know all the processes that were started together.

    Each of them would train a run of its own. The first one says so.
    """
    rank, size = launched()
    if group.size < size:
        if rank:
            sys.stderr = io.StringIO()
        library = group.mpi.Get_library_version().partition("\n")[0].strip()
        raise DistributedError(
            f"mpiexec has started {size} processes, but the MPI library of mpi4py ({library}) knows {group.size} of "
            "them; use the mpiexec of that library"
        )


def require_equal(group: MPIGroup, arguments: list[str]) -> None:
    """Raise DistributedError in all processes if one of them was started with other arguments than the first one.

    Then they would not even wait for each other in the same places.
    """
    every = group.gather(arguments)
    for rank, theirs in enumerate(every):
        if theirs != every[0]:
            raise DistributedError(
                f"rank {rank} was started by tinyvit {shlex.join(theirs)}, and rank 0 by tinyvit "
                f"{shlex.join(every[0])}; all processes need the same arguments"
            )


def _share_processors(group: MPIGroup) -> None:
    """Give each process of this machine the same number of threads."""
    if not os.environ.get("TINYVIT_THREADS"):
        from ..kernels.cpu.quota import usable_processors

        share = max(1, usable_processors() // group.local.size)
        os.environ["TINYVIT_THREADS"] = str(share)
        limit_threads(share)


def _on_gpus(group: MPIGroup, watcher: Watcher) -> MPIGroup:
    """Return a group over NCCL, in which each process of this machine has a GPU of its own."""
    from .nccl import NcclGroup

    number = group.local.rank
    try:
        check_device(f"cuda:{number}")
    except RuntimeError as error:
        raise DistributedError(
            f"rank {group.rank} is number {number} on its machine, and cannot use a GPU of that number ({error}); "
            "start one process for each GPU"
        ) from error
    set_default_device(f"cuda:{number}")
    return NcclGroup(group.mpi, watcher)
