"""What `tinyvit info` says of kernels that cannot be kept, or are not compiled at all."""

import re
import subprocess
import sys

import pytest
from sources import ROOT
from tiers import quick_first
from tiny_run import ENVIRONMENT
from tinyvit.kernels import cache
from tinyvit.kernels.cpu import compiler
from tinyvit.kernels.interrupts import import_whole

from tinyvit.info import report


def lines_of(title: str) -> list[str]:
    return [line for line in report().splitlines() if line.strip().startswith(title)]


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "can_keep", lambda: False)
    for is_there, said in (False, "anew"), (True, f"what is not yet in {cache.cache_folder()}"):
        monkeypatch.setattr(cache, "can_read", lambda is_there=is_there: is_there)
        (line,) = lines_of("compiled")
        assert f"  {said}, in each process, because {cache.cache_folder()} cannot be written" in line
    monkeypatch.setattr(cache, "can_keep", lambda: True)
    assert f"kept in {cache.cache_folder()}" in lines_of("compiled")[0]


def test_kernels_that_run_as_python_are_called_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "is_compiling", lambda: False)
    (line,) = lines_of("kernels")
    assert line.endswith("run as Python, very slowly, because NUMBA_DISABLE_JIT is set")
    assert not lines_of("vectors")


@pytest.mark.parametrize("value", ["0", "-2", " 00 ", "-1_0"])
def test_a_number_of_threads_that_numba_refuses_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", value)
    with pytest.raises(ValueError, match=f"NUMBA_NUM_THREADS is {value!r}; set it to 1 or more"):
        import_whole("tinyvit.kernels.not_imported_yet")


@pytest.mark.parametrize("value", ["", "1", "02", "1_0", "many", "-" + "9" * 6000])
def test_other_numbers_of_threads_are_not_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", value)
    with pytest.raises(ModuleNotFoundError):
        import_whole("tinyvit.kernels.not_imported_yet")


COMMANDS = [["info"], ["train", "--set", "limit=50", "--out", "run"]]
WRONG = [
    ("NUMBA_NUM_THREADS", "0", "set it to 1 or more, or unset it"),
    ("TINYVIT_THREADS", "many", "it must be a whole number from 1 to 1024"),
    ("TINYVIT_CPU", "many", "it must be one of .*"),
]

# What is not of the package, and run by `python -m` from the checkout.
MODULES = ["benchmarks", "tests.mutants", "benchmarks.captured", "benchmarks.by_operation", "benchmarks.versions"]


@pytest.mark.parametrize("module", quick_first(MODULES, 2))
@pytest.mark.parametrize(("name", "value", "says"), quick_first(WRONG))
def test_other_commands_end_with_the_same_line(module: str, name: str, value: str, says: str) -> None:
    whole, environment = [sys.executable, "-m", module, "--help"], ENVIRONMENT | {name: value}
    done = subprocess.run(whole, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 2
    package = module if module == "tests.mutants" else "benchmarks"
    assert re.fullmatch(rf"python -m {package}: error: {name} is '{value}'; {says}\n", done.stderr)


def test_importing_what_has_commands_ends_no_other_program() -> None:
    for module in ("benchmarks", "tests.mutants"):
        command = [sys.executable, "-c", f"import {module}"]
        subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | {"NUMBA_NUM_THREADS": "0"}, check=True)


@pytest.mark.parametrize("command", quick_first(COMMANDS), ids=" ".join)
@pytest.mark.parametrize(("name", "value", "says"), quick_first(WRONG))
def test_an_error_about_an_environment_variable_names_it(
    tmp_path, command: list[str], name: str, value: str, says: str
) -> None:
    whole = [sys.executable, "-m", "tinyvit", *command]
    done = subprocess.run(whole, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT | {name: value})
    assert done.returncode == 2
    assert re.fullmatch(rf"tinyvit: error: {name} is '{value}'; {says}\n", done.stderr)
    assert not list(tmp_path.iterdir())
