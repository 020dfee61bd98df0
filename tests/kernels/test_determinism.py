"""The same input gives the same bits in every run, with any number of threads, also while other threads compute."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from results import hashes, hashes_of_versions

import tinyvit as tv

SCRIPT = Path(__file__).with_name("results.py")


def test_thirty_runs_give_the_same_bits() -> None:
    first = hashes_of_versions()
    for _ in range(29):
        assert hashes_of_versions() == first


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    command = [sys.executable, "-W", "error", str(SCRIPT)]
    run = subprocess.run(command, env=os.environ | {"TINYVIT_THREADS": str(threads)}, capture_output=True, check=True)
    assert json.loads(run.stdout) == hashes_of_versions()


def test_several_python_threads_can_call_kernels_at_once() -> None:
    with tv.use_kernels("numba"), ThreadPoolExecutor(4) as pool:
        expected = dict(hashes())
        assert list(pool.map(lambda _: dict(hashes()), range(8))) == [expected] * 8
