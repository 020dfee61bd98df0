"""The same input gives the same bits in every run, with any number of threads, also while other threads compute."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from results import hashes_of_newest, hashes_of_versions

SCRIPT = Path(__file__).with_name("results.py")


def hashes_in_a_process(which: str, threads: int) -> Any:
    """Return the hashes that a fresh process with this number of threads prints."""
    command = [sys.executable, "-W", "error", str(SCRIPT), which]
    run = subprocess.run(command, env=os.environ | {"TINYVIT_THREADS": str(threads)}, capture_output=True, check=True)
    return json.loads(run.stdout)


def test_three_runs_give_the_same_bits() -> None:
    assert hashes_of_newest() == hashes_of_newest() == hashes_of_newest()


@pytest.mark.slow
def test_thirty_runs_of_every_version_give_the_same_bits() -> None:
    first = hashes_of_versions()
    for _ in range(29):
        assert hashes_of_versions() == first


@pytest.mark.slow
def test_one_and_three_threads_give_the_same_bits() -> None:
    assert hashes_in_a_process("newest", 1) == hashes_in_a_process("newest", 3) == hashes_of_newest()


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits_in_every_version(threads: int) -> None:
    assert hashes_in_a_process("all", threads) == hashes_of_versions()


@pytest.mark.slow
def test_several_python_threads_can_call_kernels_at_once() -> None:
    expected = hashes_of_newest()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: hashes_of_newest(), range(8))) == [expected] * 8
