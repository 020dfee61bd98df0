"""Run the tests of a family in a copy of the sources that has one fault."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tinyvit.kernels.cpu import processor

from . import ROOT, Family, Fault
from .forked import pytest_in

# Seconds for one test, and for all tests of a family until the process ends: a fault may make a kernel wait forever.
TIMEOUT, END = 10, 60
# How many times as long emulated kernels may take, which g++ compiles for the CPU, and whole training runs.
PATIENCE = {"emulated": 20, "package": 12}
FAULTLESS = 10  # how many times as long tests may take without a fault, when nothing hangs and a machine may be busy
PASSED, FAILED, UNKNOWN, NONE = 0, 1, 4, 5  # pytest's exit status; the last two: there is no such test
NO_FAULT = re.compile(r"(SyntaxError|NameError|UnboundLocalError|AttributeError|TypingError|LoweringError): .*")
ALL_SKIPPED = re.compile(r"^\d+ skipped(, \d+ (deselected|warnings?))* in ", re.MULTILINE)
NOTICED, NOT_NOTICED, SKIPPED = "noticed", "not noticed", "skipped"


@dataclass(frozen=True)
class Outcome:
    """What came of a fault.

    Attributes
    ----------
    found : "noticed", "not noticed", "skipped" if the test that had noticed it needs what this machine lacks, or what
        went wrong.
    test : the test that noticed it; empty if none did, or if the process ended before the first one.
    """

    found: str
    test: str = ""


def tried(family: Family, fault: Fault, objects: str, likely: str | None) -> Outcome:
    """Return whether the tests of a family notice a fault.

    The test `likely` runs first, and the others only if it does not fail. `objects` is a folder for emulated kernels,
    most of which are the same for all faults.
    """
    if fault.needs and fault.needs not in processor.usable():
        return Outcome(SKIPPED)
    patience = PATIENCE.get(family.kind, 1)
    try:
        with project(family, fault) as folder:
            if likely:
                outcome = _outcome(family, folder, objects, patience, [likely])
                if outcome.found not in (NOT_NOTICED, f"status {UNKNOWN}", f"status {NONE}"):
                    return outcome
            return _outcome(family, folder, objects, patience)
    except LookupError as error:
        return Outcome(str(error))


def without_fault(family: Family, tests: Sequence[str], objects: str) -> str:
    """Return "not noticed" if these tests pass without a fault, and else what came of them."""
    with project(family, None) as folder:
        return _outcome(family, folder, objects, PATIENCE.get(family.kind, 1) * FAULTLESS, tests).found


@contextmanager
def project(family: Family, fault: Fault | None) -> Iterator[Path]:
    """Make a folder with a copy of the sources that has the fault, and tests."""
    with tempfile.TemporaryDirectory(prefix="tinyvit-fault-") as name:
        folder = Path(name)
        if family.kind == "package":
            _copy_package(folder)
        else:
            _copy_kernels(folder / "tinyvit", folder / "tests")
        shutil.copy(ROOT / "pyproject.toml", folder)
        if fault is not None:
            path = folder / (family.sources if family.kind == "package" else "tinyvit/kernels") / fault.file
            path.write_text(fault.applied(path.read_text("utf-8")), "utf-8")
        yield folder


def _copy_kernels(package: Path, tests: Path) -> None:
    """Copy the kernels and their tests; the package and the benchmarks are those of this checkout."""
    package.mkdir()
    for path in (ROOT / "tinyvit").iterdir():
        (package / path.name).symlink_to(path)
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
    shutil.copytree(ROOT / "kernels", package / "kernels", ignore=ignored)
    for name in ("kernels", "cuda"):
        shutil.copytree(ROOT / "tests" / name, tests / name, ignore=ignored)
    shutil.copy(ROOT / "tests" / "conftest.py", tests)
    (tests.parent / "benchmarks").symlink_to(ROOT / "benchmarks")  # whose description of the machine the tests use


def _copy_package(folder: Path) -> None:
    """Copy the package and all tests; the kernels stay in this checkout, whose compiled ones then serve every run."""
    for name in ("tinyvit", "tests"):
        shutil.copytree(ROOT / name, folder / name)  # compiled modules too, for they hold as long as their sources
    (folder / "tinyvit" / "kernels").mkdir()
    own = (ROOT / "kernels" / "__init__.py").read_text("utf-8")
    (folder / "tinyvit" / "kernels" / "__init__.py").write_text(
        f"__path__ = [{str(ROOT / 'kernels')!r}]\n{own}", "utf-8"
    )


def _outcome(family: Family, folder: Path, objects: str, patience: int, tests: Sequence[str] = ()) -> Outcome:
    """Return what comes of some tests in a project, or of all tests of its family, up to the first that fails."""
    started = folder / "started"
    try:
        run = _run(family, folder, objects, patience, tests)
    except subprocess.TimeoutExpired:
        return Outcome(NOTICED, _text_of(started))
    if run.returncode < 0:  # a crash
        return Outcome(NOTICED, _text_of(started))
    if run.returncode in (UNKNOWN, NONE) and tests:
        return Outcome(f"status {run.returncode}")
    if run.returncode not in (PASSED, FAILED):
        return Outcome(f"the tests could not be run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    unfit = NO_FAULT.search(run.stdout)
    if unfit:
        return Outcome(f"this is not valid code: {unfit[0]}")
    if run.returncode == FAILED:
        return Outcome(NOTICED, _text_of(started))
    return Outcome(SKIPPED if tests and ALL_SKIPPED.search(run.stdout) else NOT_NOTICED)


def _text_of(file: Path) -> str:
    return file.read_text("utf-8") if file.exists() else ""


def _run(
    family: Family, folder: Path, objects: str, patience: int, tests: Sequence[str]
) -> "subprocess.CompletedProcess[str]":
    """Run pytest in a project, with the slow tests of kernels."""
    # The path in the name of a test is relative to the project.
    # A test that is named runs whatever its marks are; pyproject.toml leaves slow ones out.
    arguments = [*(str(folder / test) for test in tests), "-m", ""] if tests else [*family.arguments]
    arguments += ["-x", "-q", "--rootdir", str(folder), "-p", "no:cacheprovider"]
    # A signal would be handled only after compiled code has ended.
    arguments += ["--timeout", str(patience * TIMEOUT), "--timeout-method", "thread"]
    if family.kind == "package":
        # Without real data sets, so that the outcome and the time are the same everywhere.
        settings = {"PYTHONPATH": str(folder), "TINYVIT_DATA": ""}
        arguments += ["--hypothesis-profile=faults"]
        return pytest_in(folder / "tests", arguments, settings, patience * END, folder / "started")
    arguments += ["--hypothesis-profile=kernel-faults", "-m", "slow or not slow", "-W", "ignore::RuntimeWarning"]
    settings = {
        "PYTHONPATH": str(folder),
        "NUMBA_CACHE_DIR": str(folder / "cache"),
        "NUMBA_DISABLE_JIT": "1" if family.kind == "run" else "0",
        "TINYVIT_EMULATED": objects,
        "TINYVIT_DEPTHS": "8 17 24",
        "TINYVIT_EXAMPLES": "40",
        "TINYVIT_THREADS": "2",
        "TINYVIT_COMPILE_AHEAD": "0",
    }
    place = folder / "tests" / family.place
    return pytest_in(place, arguments, settings, patience * END, folder / "started")
