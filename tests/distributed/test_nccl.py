"""The calls of NCCL by several processes, which are threads on a pretended device."""

import gc
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import fake_cupy
import fake_nccl
import numpy as np
import pytest
from pretended_mpi import PretendedMPI, World, in_threads

import tinyvit as tv
from tinyvit.backend import BFLOAT16, current_group, default_device, set_current_group, set_default_device
from tinyvit.distributed import start
from tinyvit.distributed.nccl import NcclGroup
from tinyvit.optim.tree import add_up, nodes_within, shards_of


@pytest.fixture(autouse=True)
def cupy(monkeypatch) -> Iterator[types.ModuleType]:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # a group replaces the streams of all processes but the first
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    gc.freeze()  # the objects of other tests are not searched for arrays
    with fake_cupy.installed() as fake:
        yield fake
    gc.unfreeze()


def by_processes(size: int, cupy: Any, work: Callable[[NcclGroup], Any]) -> tuple[list[Any], fake_nccl.Library]:
    """Call `work` with the group of each process; return the results, and what was called."""
    library = fake_nccl.module(size, cupy)

    def one(mpi: PretendedMPI) -> Any:
        try:
            return work(NcclGroup(mpi))
        except BaseException:
            library.world.barrier.abort()  # for the others, which would wait for this one
            raise

    return in_threads(size, one), library


@pytest.mark.parametrize(("size", "shards", "length"), [(1, 4, 7), (2, 8, 7), (3, 8, 100), (4, 4, 1), (3, 3, 2)])
def test_an_exact_sum_has_the_bits_of_the_tree(size, shards, length, cupy):
    rng = np.random.default_rng(length)
    values = (rng.standard_normal((shards, length)) * 10.0 ** rng.integers(-4, 4, (shards, length))).astype(np.float32)

    def leaf(node: tuple[int, int]) -> np.ndarray | None:
        return values[node[0]].copy() if node[1] - node[0] == 1 else None

    def work(group: NcclGroup) -> bytes:
        nodes = nodes_within(shards_of(group.rank, size, shards), (0, shards))
        partials = {node: cupy.asarray(add_up(node, leaf)) for node in nodes}
        return group.sum_exact(partials, shards).get().tobytes()

    found, library = by_processes(size, cupy, work)
    assert set(found) == {add_up((0, shards), leaf).tobytes()}
    assert {tuple(calls) for calls in library.calls.values()} == {("rank", "group", "group")}


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_fast_sums_are_made_beside_the_computation(wire, cupy):
    values = np.random.default_rng(0).standard_normal((3, 2, 10)).astype(np.float32)

    def work(group: NcclGroup) -> list[np.ndarray]:
        arrays = [cupy.asarray(values[group.rank, i]) for i in range(2)]
        sums = [group.start_sum(array, wire) for array in arrays]
        unfinished = [np.isnan(array.get()).all() for array in arrays]
        assert unfinished == [wire == "float32"] * 2
        for each in sums:
            each.advance()
            each.wait()
        return [array.get() for array in arrays]

    found, library = by_processes(3, cupy, work)
    given = values if wire == "float32" else values.astype(BFLOAT16)
    expected = ((given[0] + given[1]) + given[2]).astype(np.float32)
    for arrays in found:
        np.testing.assert_array_equal(arrays, expected)
    assert {tuple(calls) for calls in library.calls.values()} == {("rank", "allReduce", "allReduce")}


def test_the_identity_comes_from_process_0(cupy):
    found, library = by_processes(3, cupy, lambda group: (group.rank, group.size))
    assert found == [(0, 3), (1, 3), (2, 3)]
    assert len(library.identities) == 1


# That wrong calls are found -------------------------------------------------------------------------------------------


def test_memory_that_is_not_on_the_device_is_refused(cupy):
    array = cupy.asarray(np.arange(6, dtype=np.float32))
    pointer = array.data.ptr
    assert fake_nccl.memory(pointer + 8, 4, 7).tolist() == [2, 3, 4, 5]
    for count, datatype, offset in ((7, 7, 0), (5, 7, 8), (3, 9, 0)):
        with pytest.raises(AssertionError, match="are not in one array"):
            fake_nccl.memory(pointer + offset, count, datatype)
    host = np.zeros(4, np.float32)
    with pytest.raises(AssertionError, match="are not in one array"):
        fake_nccl.memory(host.ctypes.data, 4, 7)


def test_a_stream_that_was_not_waited_for_is_noticed(cupy):
    def work(group: NcclGroup) -> None:
        array, stream = cupy.asarray(np.ones(3, np.float32)), cupy.cuda.Stream()
        nccl = cupy.cuda.nccl
        communicator = nccl.NcclCommunicator(1, group.broadcast(fake_nccl_identity(nccl)), 0)
        communicator.allReduce(array.data.ptr, array.data.ptr, 3, nccl.NCCL_FLOAT32, nccl.NCCL_SUM, stream.ptr)

    def fake_nccl_identity(nccl: Any) -> Any:
        return nccl.NcclCommunicator.library.identities[0]

    with pytest.raises(AssertionError, match="has not waited"):
        by_processes(1, cupy, work)


# The start ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def joined(cupy, monkeypatch) -> Iterator[Callable[[World, int], Any]]:
    """A function that lets process `rank` of a world join its group, with a GPU."""
    monkeypatch.setenv("TINYVIT_THREADS", "1")
    monkeypatch.setattr(start.atexit, "register", lambda function: None)
    monkeypatch.setattr(start, "require_equal", lambda *_: None)  # the other processes are not there
    before, device = current_group(), default_device()

    def join(world: World, rank: int) -> Any:
        monkeypatch.setitem(sys.modules, "mpi4py", types.SimpleNamespace(MPI=PretendedMPI(world, rank)))
        set_default_device("cuda")
        return start.join_group()

    yield join
    set_current_group(before)
    set_default_device(device)


def test_a_process_takes_the_gpu_of_its_number(joined, cupy):
    fake_nccl.module(1, cupy)
    group = joined(World(1), 0)
    group.ended()
    assert isinstance(group, NcclGroup)
    assert default_device() == "cuda:0"
    assert current_group() is group


def test_more_processes_than_gpus_are_refused(joined, monkeypatch):
    monkeypatch.setattr("tinyvit.distributed.nccl.NcclGroup", lambda *_: pytest.fail("it took the GPU of another one"))
    with pytest.raises(start.DistributedError, match=r"rank 2 is number 2 on its machine.* one process for each GPU"):
        joined(World(3), 2)


def test_a_step_with_fast_sums_gives_the_bits_of_exact_ones(cupy, tmp_path, monkeypatch):
    """The whole way: gradients in arrays on the device, buckets, streams, and the optimizer's gradients after it."""
    from tinyvit.run.buckets import Buckets
    from tinyvit.run.flat import FlatGradient

    values = np.random.default_rng(0).standard_normal((2, 6, 5)).astype(np.float32)

    def work(group: NcclGroup) -> list[bytes]:
        parameters = [tv.Tensor(cupy.asarray(np.zeros(5, np.float32)), requires_grad=True) for _ in range(6)]
        flat = FlatGradient(parameters, 2)
        made = Buckets(flat, group, "float32")
        made.begin()
        x = [tv.Tensor(cupy.asarray(values[group.rank, i])) for i in range(6)]
        with made.listening():
            sum((p * v).sum() for p, v in zip(parameters, x, strict=True)).backward()
        assert flat.unpack(made.finish(group.rank, 1.0 + group.rank)).tolist() == [1, 2]
        return [p.grad.numpy().tobytes() for p in parameters]

    monkeypatch.setattr("tinyvit.run.buckets.BUCKET", 10)
    found, library = by_processes(2, cupy, work)
    assert found == [[(values[0, i] + values[1, i]).tobytes() for i in range(6)]] * 2
    assert library.calls[0] == ["rank", *["allReduce"] * 4]
