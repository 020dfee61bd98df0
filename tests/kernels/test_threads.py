"""The thread team: every chunk is done once, by any free thread, and the caller continues when all are done."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numba.core import config
from tinyvit.kernels.cpu import threads, words
from tinyvit.kernels.cpu.compiler import body, entry
from tinyvit.kernels.cpu.threads import parallel

compiled = pytest.mark.skipif(bool(config.DISABLE_JIT), reason="needs compiled kernels")


@body
def _mark(chunk, chunks, hits, work):
    """Compute for a while, then leave a mark."""
    x = 1.0
    for _ in range(work[chunk % work.size]):
        x = np.sqrt(x + 1.0)
    hits[chunk] += chunks if x > 0 else 0


@entry
def marked(hits, work, team):
    """Return the sum of all marks immediately after `parallel` returns."""
    parallel(_mark, hits.size, team, (hits, work))
    total = 0
    for h in hits:
        total += h
    return total


@body
def _meet(chunk, chunks, here, met, patience):
    """Say that this chunk has begun, and wait a while for the other one."""
    here[chunk] = 1
    for i in range(patience):
        met[chunk] = here[1 - chunk]
        here[2 + chunk] = i  # so that here[1 - chunk] is read again
        if met[chunk] == 1:
            break


@entry
def meeting(here, met, patience, team):
    parallel(_meet, 2, team, (here, met, patience))


@body
def _begin(chunk, chunks, here, tries, patience):
    """Say that this chunk has begun. The first chunk notes which one has, if it is one; the others wait for that."""
    here[chunk] = 1
    for i in range(patience):
        tries[chunk] = i  # so that `here` is read again
        if chunk > 0 and here[0] != 1:
            break
        begun, last = 0, 0
        for other in range(1, chunks if chunk == 0 else 0):
            begun, last = (begun + 1, other) if here[other] == 1 else (begun, last)
        if begun > 0:
            here[0] = -last if begun == 1 else 0
            break


@entry
def beginning(here, tries, patience, team):
    parallel(_begin, here.size, team, (here, tries, patience))


@body
def _fail(chunk, chunks, hits):
    hits[chunk] += 1
    if chunk == 1:
        raise ValueError


@entry
def failing(hits, team):
    parallel(_fail, hits.size, team, (hits,))


@pytest.fixture(params=[2])
def two_threads(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """A team of two threads, or of as many as a test asks for, even on a machine with one processor."""
    monkeypatch.setenv("TINYVIT_THREADS", str(request.param))
    threads.thread_count.cache_clear()
    before, threads._team = threads._team, None
    yield
    if threads._team is not None:
        threads._team.stop()
    threads._team = before
    threads.thread_count.cache_clear()


def have_met() -> bool:
    """Whether two threads ever work at the same time; other programs may prevent it in some of the tries."""
    meeting(np.zeros(4, np.int64), np.zeros(2, np.int64), 1, 0)  # compile it before the team starts
    for _ in range(20):
        met = np.zeros(2, np.int64)
        meeting(np.zeros(4, np.int64), met, 200_000_000, threads.team())
        if met.all():
            return True
    return False


@compiled
@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 64, 50_000])
@pytest.mark.parametrize("uneven", [False, True])
def test_each_chunk_is_done_once_before_the_caller_continues(two_threads: None, chunks: int, uneven: bool) -> None:
    work = np.array([0, 20, 3000 if chunks < 100 else 0, 0, 1] if uneven else [1])
    for _ in range(300 if chunks < 100 else 150):  # threads that share a busy processor meet in few of them
        room = np.zeros(chunks + 1, np.int64)  # with room for a chunk too many
        hits = room[:-1]
        assert marked(hits, work, threads.team()) == chunks * chunks
        np.testing.assert_array_equal(hits, chunks)
        assert room[-1] == 0


@compiled
@pytest.mark.parametrize("two_threads", [threads._SHARES + 3], indirect=True)
def test_threads_of_which_there_are_more_than_shares_do_each_chunk_once(two_threads: None) -> None:
    for chunks in (2, threads._SHARES - 1, threads._SHARES + 1, 1000):
        for _ in range(10):
            hits = np.zeros(chunks, np.int64)
            assert marked(hits, np.array([50]), threads.team()) == chunks * chunks
            np.testing.assert_array_equal(hits, chunks)


@compiled
@pytest.mark.parametrize("chunks", [2, 4, 9])
def test_each_thread_begins_with_its_own_share(two_threads: None, chunks: int) -> None:
    beginning(np.zeros(chunks, np.int64), np.zeros(chunks, np.int64), 1, 0)  # compile it before the team starts
    for _ in range(20):  # other programs may prevent that the threads meet
        here = np.zeros(chunks, np.int64)
        beginning(here, np.zeros(chunks, np.int64), 50_000_000, threads.team())
        if here[0] < 0:
            assert -here[0] == chunks // 2
            return
    pytest.skip("two threads never worked at the same time")


@compiled
def test_the_caller_waits_for_a_worker_that_is_slower(two_threads: None) -> None:
    for i in range(400):
        hits = np.zeros(2, np.int64)
        assert marked(hits, np.array([i % 5, 20_000]), threads.team()) == 4


def test_without_a_team_the_caller_does_all_chunks() -> None:
    hits = np.zeros(7, np.int64)
    assert marked(hits, np.array([1]), 0) == 49


@compiled
def test_two_threads_work_at_the_same_time(two_threads: None) -> None:
    assert have_met()
    met = np.zeros(2, np.int64)
    meeting(np.zeros(4, np.int64), met, 1000, 0)  # the caller alone meets no other chunk before its second one
    assert met.tolist() == [0, 1]


@compiled
def test_without_workers_the_caller_does_all_chunks_and_afterwards_they_help_again(two_threads: None) -> None:
    assert have_met()
    with threads.without_workers():
        met = np.zeros(2, np.int64)
        meeting(np.zeros(4, np.int64), met, 1000, threads.team())
        assert met.tolist() == [0, 1]
    assert have_met()


def asleep() -> bool:
    """Whether the worker of a team of two is asleep."""
    return bool(threads._team.words[words.WORKERS + words.ASLEEP])


@compiled
def test_the_team_goes_to_sleep_and_wakes(two_threads: None) -> None:
    assert have_met()
    while not asleep():
        time.sleep(0.01)
    start = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - start < 0.1  # the worker does not spin
    assert have_met()


@compiled
def test_a_worker_wakes_even_after_the_shortest_sleep(two_threads: None) -> None:
    for pause in np.linspace(0, 0.003, 200):  # some pauses end just when the worker falls asleep
        time.sleep(pause)
        hits = np.zeros(4, np.int64)
        assert marked(hits, np.array([200]), threads.team()) == 16
    assert have_met()


@compiled
def test_a_stopped_team_ends_its_threads(two_threads: None) -> None:
    threads.team()
    workers = threads._team._workers
    threads._team.stop()
    assert len(workers) == 1
    assert not workers[0].is_alive()
    threads._team = None


@compiled
def test_a_failing_chunk_fails_its_call_and_no_later_one(two_threads: None) -> None:
    for team in (0, threads.team()):
        hits = np.zeros(5, np.int64)
        with pytest.raises(MemoryError, match="a kernel ran out of memory"):
            failing(hits, team)
        np.testing.assert_array_equal(hits, 1)
    assert have_met()


@compiled
def test_a_caller_and_a_worker_that_wait_give_way(two_threads: None) -> None:
    threads.team()
    times_given = {"caller": 0, "worker": 0}
    caller = threading.get_ident()

    def give_way() -> int:
        times_given["caller" if threading.get_ident() == caller else "worker"] += 1
        return 0

    counted = ctypes.CFUNCTYPE(ctypes.c_int)(give_way)
    system = int(threads._team.words[words.YIELD])
    threads._team.words[words.YIELD] = ctypes.cast(counted, ctypes.c_void_p).value
    try:
        for i in range(2000):
            hits = np.zeros(2, np.int64)
            work = np.array([200_000, 400_000][:: 1 - i % 2 * 2])  # whoever has the longer chunk is waited for
            assert marked(hits, work, threads.team()) == 4
            if all(times_given.values()):
                break
        while not asleep():  # from then on, the worker calls no function of this test
            time.sleep(0.01)
    finally:
        threads._team.words[words.YIELD] = system
    assert all(times_given.values()), times_given


@compiled
def test_a_system_without_a_function_that_gives_way_still_computes(two_threads: None) -> None:
    threads.team()
    threads._team.words[words.YIELD] = 0
    for i in range(100):
        hits = np.zeros(3, np.int64)
        assert marked(hits, np.array([i % 5, 2000]), threads.team()) == 9
    assert have_met()  # the worker is awake now, and falls asleep after it has waited for long
    while not asleep():
        time.sleep(0.01)


def test_too_little_work_wakes_no_worker() -> None:
    assert threads.team(False) == 0


@pytest.mark.parametrize("value", ["0", "abc", "-1", "1.5", "1025", " 2", "٢", "9" * 30, "9" * 5000])
def test_a_wrong_number_of_threads_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TINYVIT_THREADS", value)
    threads.thread_count.cache_clear()
    with pytest.raises(ValueError, match=rf"TINYVIT_THREADS is '{value}'; it must be a whole number from 1 to 1024"):
        threads.thread_count()


@pytest.mark.parametrize("value", ["0", "٢", "9" * 30])
def test_tinyvit_can_be_imported_with_a_wrong_number_of_threads(value: str) -> None:
    """The command that needs threads then says what is wrong."""
    subprocess.run([sys.executable, "-c", "import tinyvit"], env=os.environ | {"TINYVIT_THREADS": value}, check=True)


@pytest.mark.parametrize(("value", "count"), [("1", 1), ("3", 3), ("", None)])
def test_the_number_of_threads_is_the_variable_or_the_number_of_processors(
    monkeypatch: pytest.MonkeyPatch, value: str, count: int | None
) -> None:
    monkeypatch.setenv("TINYVIT_THREADS", value)
    threads.thread_count.cache_clear()
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert threads.thread_count() == (count or processors)


@pytest.fixture(autouse=True)
def forget_the_count() -> Iterator[None]:
    yield
    threads.thread_count.cache_clear()


FORK = """
import os, sys, threading
import numpy as np
import tinyvit as tv, tinyvit.functional as F
x, one = tv.tensor(np.random.default_rng(0).standard_normal((900, 64)).astype("f")), tv.tensor(np.ones(64, "f"))
def result():
    return F.layer_norm(x, one, one).numpy().tobytes()
with tv.use_kernels("numba"):
    before = result()
    child = os.fork()
    if child == 0:
        is_same = [result() for _ in range(50)] == [before] * 50
        workers = [thread for thread in threading.enumerate() if thread.name.startswith("tinyvit-")]
        os._exit(0 if is_same and workers and all(worker.is_alive() for worker in workers) else 3)
    here = [result() for _ in range(50)] == [before] * 50
    _, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) or (0 if here else 4))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_after_a_fork_both_processes_compute(tmp_path: object) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    subprocess.run(command, env=os.environ | {"TINYVIT_THREADS": "2"}, check=True)
