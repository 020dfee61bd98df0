"""The tests are collected the same way in every process, so that they can be told apart, repeated and shared out."""

import os
import subprocess
import sys

import pytest
from sources import ROOT


def collected(hash_seed: str) -> list[str]:
    """The names of all tests, in order, as a fresh process with this seed of `hash` collects them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", ""]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True)
    names = [line for line in run.stdout.decode().splitlines() if "::" in line]
    assert len(names) > 1000, run.stdout.decode()[-2000:]
    return names


@pytest.mark.slow
def test_tests_have_the_same_names_in_every_process() -> None:
    assert collected("1") == collected("2")
