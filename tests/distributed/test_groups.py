"""Groups of processes, whose MPI is pretended by threads; and what watchers print."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretended_mpi import PretendedMPI, in_threads
from tiny_run import ENVIRONMENT

from tinyvit import cli
from tinyvit.backend import BFLOAT16, Group, Stopped, launched
from tinyvit.distributed import watch
from tinyvit.distributed.mpi import MPIGroup, packed, slices, starts
from tinyvit.distributed.start import DistributedError, join_group, require_all, require_equal
from tinyvit.distributed.watch import claim
from tinyvit.optim.tree import add_up, nodes_within, shards_of


@pytest.fixture(autouse=True)
def _standard_streams(monkeypatch):
    """A group replaces the streams of all processes but the first; here all of them are threads of one."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)


def leaves(shards: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(length)
    return (rng.standard_normal((shards, length)) * 10.0 ** rng.integers(-4, 4, (shards, length))).astype(np.float32)


# float32 sums of any length, also shorter than the number of processes
@pytest.mark.parametrize("length", [1, 2, 7, 1000])
@pytest.mark.parametrize(("size", "shards"), [(1, 8), (2, 8), (4, 8), (8, 8), (3, 8), (5, 6), (3, 7)])
def test_an_exact_sum_has_the_bits_of_the_tree(size, shards, length):
    values = leaves(shards, length)

    def known(node: tuple[int, int]) -> np.ndarray | None:
        return values[node[0]].copy() if node[1] - node[0] == 1 else None

    def work(mpi: PretendedMPI) -> Any:
        group = MPIGroup(mpi)
        nodes = nodes_within(shards_of(group.rank, size, shards), (0, shards))
        return group.sum_exact({node: add_up(node, known) for node in nodes}, shards)

    expected = add_up((0, shards), known)
    assert {total.tobytes() for total in in_threads(size, work)} == {expected.tobytes()}


@pytest.mark.parametrize("length", [1, 50])
def test_a_fast_sum_is_that_of_all_processes(length):
    values = leaves(3, length)

    def work(mpi: PretendedMPI) -> np.ndarray:
        array = values[mpi.COMM_WORLD.rank].copy()
        MPIGroup(mpi).start_sum(array, "float32").wait()
        return array

    totals = in_threads(3, work)
    assert {total.tobytes() for total in totals} == {((values[0] + values[1]) + values[2]).tobytes()}


def test_a_sum_in_bfloat16_is_rounded_after_each_addition():
    values = np.random.default_rng(0).standard_normal((2, 100)).astype(np.float32)

    def work(mpi: PretendedMPI) -> np.ndarray:
        array = values[mpi.COMM_WORLD.rank].copy()
        before = MPIGroup(mpi).start_sum(array, "bfloat16")
        before.advance()
        before.wait()
        return array

    narrow = values.astype(BFLOAT16).astype(np.float32)
    expected = (narrow[0] + narrow[1]).astype(BFLOAT16).astype(np.float32)
    assert {total.tobytes() for total in in_threads(2, work)} == {expected.tobytes()}


def test_sums_go_on_side_by_side():
    def work(mpi: PretendedMPI) -> list[np.ndarray]:
        group = MPIGroup(mpi)
        arrays = [np.full(4, 10.0 * i + group.rank, np.float32) for i in range(3)]
        wires = ("float32", "bfloat16", "float32")
        sums = [group.start_sum(array, wire) for array, wire in zip(arrays, wires, strict=True)]
        for each in reversed(sums):
            each.wait()
        assert group.seconds > 0
        return arrays

    for arrays in in_threads(2, work):
        assert [array.tolist() for array in arrays] == [[1] * 4, [21] * 4, [41] * 4]


def test_values_come_from_process_0_and_by_rank():
    def work(mpi: PretendedMPI) -> Any:
        group = MPIGroup(mpi)
        group.barrier()
        return group.broadcast(10 + group.rank), group.gather(10 + group.rank), group.any(group.rank == 2), group.size

    assert in_threads(3, work) == [(10, [10, 11, 12], True, 3)] * 3
    assert in_threads(2, work) == [(10, [10, 11], False, 2)] * 2


def test_a_process_that_is_stopped_stops_all():
    def work(mpi: PretendedMPI) -> Any:
        def measure() -> int:
            if mpi.COMM_WORLD.rank == 1:
                raise Stopped
            return mpi.COMM_WORLD.rank

        with pytest.raises(Stopped):
            MPIGroup(mpi).collect(measure)
        return MPIGroup(mpi).collect(lambda: mpi.COMM_WORLD.rank)

    assert in_threads(3, work) == [[0, 1, 2]] * 3


def test_communication_is_timed():
    def work(mpi: PretendedMPI) -> float:
        group = MPIGroup(mpi)
        before = group.seconds
        group.sum_exact({(group.rank, group.rank + 1): np.ones(3, np.float32)}, 2)
        return group.seconds - before

    assert all(seconds > 0 for seconds in in_threads(2, work))


def test_a_group_of_one_process_has_nothing_to_do():
    group = Group()
    assert (group.broadcast(3), group.gather(3), group.collect(lambda: 3), group.any(True)) == (3, [3], [3], True)
    assert group.sum_exact({(0, 4): 5}, 4) == 5
    array = np.ones(3, np.float32)
    alone = group.start_sum(array, "bfloat16")
    alone.advance()
    alone.wait()
    assert array.tolist() == [1, 1, 1]
    assert group.is_first
    assert not group.divides


def test_slices_and_parts():
    assert slices(10, 4).tolist() == [0, 2, 5, 7, 10]
    assert starts(np.array([3, 0, 2])).tolist() == [0, 3, 3]
    parts = packed([np.arange(4), 10 + np.arange(4)], slices(4, 2))
    assert parts.tolist() == [0, 1, 10, 11, 2, 3, 12, 13]


# Watchers -------------------------------------------------------------------------------------------------------------

WATCHED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])  # the file alone, without the package around it
import watch
watch.ALL_ENDED = float(sys.argv[4])
watcher = watch.Watcher()
watcher.tell(Path(sys.argv[1]), "rank 1 was killed")
if sys.argv[2] == "ends":
    watcher.ended()
else:
    os.kill(os.getpid(), 9)
"""


def watched(claims: Path, how: str, seconds: float = 60.0) -> str:
    """Return what the watcher of a process prints that is killed or ends by itself; its claim is removed after that."""
    command = [sys.executable, "-c", WATCHED, str(claims), how, str(Path(watch.__file__).parent), str(seconds)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True).stderr  # waits for the watcher too


def test_a_watcher_says_that_its_process_was_killed_unless_another_was_first(tmp_path):
    pytest.importorskip("fcntl", reason="this system has no SIGKILL")
    assert watched(tmp_path / "claims", "ends") == ""
    assert watched(tmp_path / "claims", "killed") == "rank 1 was killed\n"
    assert watched(tmp_path / "claims", "killed") == ""


def test_the_first_claim_counts_and_without_a_folder_every_one(tmp_path):
    assert [claim(tmp_path / "claims", 7) for _ in range(3)] == [True, False, False]
    assert [claim(tmp_path / "missing" / "claims", 7) for _ in range(2)] == [True, True]


class Told:
    """A watcher that notes when its process has ended."""

    def __init__(self, events: list[str], name: str) -> None:
        self.events, self.name = events, name

    def ended(self) -> None:
        self.events.append(self.name)


def test_a_process_counts_as_ended_when_all_have_or_when_all_have_failed():
    events: list[str] = []

    def work(mpi: PretendedMPI, fails: bool) -> None:
        rank = mpi.COMM_WORLD.rank
        group = MPIGroup(mpi, Told(events, "ended"))  # type: ignore[arg-type]
        if rank == 0:
            time.sleep(0.1)
            events.append("late")
        if fails:
            group.failed(1, "the reason")
        group.finish()  # which waits no more for processes that have failed

    in_threads(2, lambda mpi: work(mpi, False))
    assert events == ["late", "ended", "ended"]
    events.clear()
    in_threads(2, lambda mpi: work(mpi, True))
    assert events[0] == "late"


# Loading --------------------------------------------------------------------------------------------------------------


def test_nothing_of_it_is_loaded_without_being_asked_for():
    code = (
        "import sys, tinyvit.cli, tinyvit.run.loop, tinyvit.run.sharded\n"
        "found = [m for m in sys.modules if m.startswith(('tinyvit.distributed', 'mpi4py'))]\n"
        "sys.exit(str(found) if found else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_without_mpi4py_one_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(DistributedError, match=r"pip install 'tinyvit\[mpi\]'"):
        join_group()


# Launchers ------------------------------------------------------------------------------------------------------------


def started_by(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name in ("PMI_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_a_launcher_tells_rank_and_size(monkeypatch):
    started_by(monkeypatch)
    assert launched() == (0, 1)
    started_by(monkeypatch, PMI_RANK="2", PMI_SIZE="4")
    assert launched() == (2, 4)
    started_by(monkeypatch, OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_SIZE="3")
    assert launched() == (1, 3)
    started_by(monkeypatch, PMI_RANK="1", PMI_SIZE="none")
    assert launched() == (0, 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_mpiexec_of_another_mpi_is_refused_with_one_message(rank, monkeypatch):
    started_by(monkeypatch, PMI_RANK=str(rank), PMI_SIZE="4")
    before = sys.stderr
    says = r"mpiexec has started 4 processes, but the MPI library of mpi4py \(Open MPI v5\) knows 1 of them; use"
    with pytest.raises(DistributedError, match=says):
        in_threads(1, lambda mpi: require_all(MPIGroup(mpi)))
    assert (sys.stderr is before) == (rank == 0)  # the others print nothing
    started_by(monkeypatch, PMI_RANK="0", PMI_SIZE="2")
    in_threads(2, lambda mpi: require_all(MPIGroup(mpi)))


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_of_mpiexec_that_train_apart_say_so_once(rank, monkeypatch, capsys):
    started_by(monkeypatch, PMI_RANK=str(rank), PMI_SIZE="2")
    monkeypatch.setattr(sys, "argv", ["tinyvit", "train", "nothing"])
    with pytest.raises(SystemExit):
        cli.main()
    warned = "warning: mpiexec has started 2 processes, and each of them trains a run of its own"
    assert (warned in capsys.readouterr().err) == (rank == 0)


def test_processes_with_other_arguments_are_refused():
    in_threads(2, lambda mpi: require_equal(MPIGroup(mpi), ["train", "digits"]))
    says = r"rank 2 was started by tinyvit --resume 'a run', and rank 0 by tinyvit train digits; all processes"
    for rank in range(3):

        def work(mpi: PretendedMPI, rank: int = rank) -> None:
            group = MPIGroup(mpi)
            arguments = ["train", "digits"] if group.rank < 2 else ["--resume", "a run"]
            if group.rank == rank:
                with pytest.raises(DistributedError, match=says):
                    require_equal(group, arguments)
            else:
                with suppress(DistributedError):
                    require_equal(group, arguments)

        in_threads(3, work)


def test_a_claim_is_removed_by_its_process_alone(tmp_path, monkeypatch):
    pytest.importorskip("fcntl", reason="this system has no SIGKILL")
    claims = tmp_path / "claims"
    assert watched(claims, "killed", seconds=0.0) == "rank 1 was killed\n"
    for _ in range(200):
        if not claims.exists():
            break
        time.sleep(0.05)
    assert not claims.exists()
    claim(claims, 7)
    assert watched(claims, "killed", seconds=0.0) == ""
    time.sleep(0.2)
    assert claims.read_text() == "7"
