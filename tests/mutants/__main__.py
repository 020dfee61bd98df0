"""Run tests with one planted fault after the other; the exit status is 1 if one is not noticed."""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from . import Family, Fault, read
from .forked import pytest_in

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROCESSES = 2
# Seconds for one test, and for all tests of a family until the process ends: a fault may make a kernel wait forever.
TIMEOUT, END = 10, 60
# How many times as long emulated kernels may take, which g++ compiles for the CPU, and whole training runs.
PATIENCE = {"emulated": 20, "package": 12}
FAULTLESS = 10  # how many times as long tests may take without a fault, when nothing hangs and a machine may be busy
PASSED, FAILED = 0, 1  # pytest's exit status
NO_FAULT = re.compile(r"(SyntaxError|NameError|UnboundLocalError|AttributeError|TypingError|LoweringError): .*")


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


def outcome(family: Family, fault: Fault | None, objects: str) -> str:
    """Return whether the tests of a family notice a fault, or none: "noticed", "not noticed", or what went wrong."""
    try:
        with project(family, fault) as folder:
            patience = PATIENCE.get(family.kind, 1) * (FAULTLESS if fault is None else 1)
            run = tested(family, folder, objects, patience)
    except LookupError as error:
        return str(error)
    except subprocess.TimeoutExpired:
        return "noticed"
    if run.returncode < 0:  # a crash
        return "noticed"
    if run.returncode not in (PASSED, FAILED):
        return f"the tests could not be run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
    unfit = NO_FAULT.search(run.stdout)
    if unfit:
        return f"this is not valid code: {unfit[0]}"
    return "not noticed" if run.returncode == PASSED else "noticed"


def tested(family: Family, folder: Path, objects: str, patience: int) -> "subprocess.CompletedProcess[str]":
    """Run pytest in a project, with the slow tests of kernels.

    `objects` is a folder for emulated kernels, most of which are the same for all faults.
    """
    arguments = [*family.arguments, "-x", "-q", "--rootdir", str(folder), "-p", "no:cacheprovider"]
    # A signal would be handled only after compiled code has ended.
    arguments += ["--timeout", str(patience * TIMEOUT), "--timeout-method", "thread"]
    if family.kind == "package":
        # Without real data sets, so that the outcome and the time are the same everywhere.
        settings = {"PYTHONPATH": str(folder), "TINYVIT_DATA": ""}
        arguments += ["--hypothesis-profile=faults"]
        return pytest_in(folder / "tests", arguments, settings, patience * END)
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
    place = folder / "tests" / ("cuda" if family.kind == "emulated" else "kernels")
    return pytest_in(place, arguments, settings, patience * END)


def main() -> int:
    """Run the command line."""
    known = {path.stem: read(path) for path in sorted(HERE.glob("*.txt"))}
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("family", nargs="*", help=f"{', '.join(known)}; all by default")
    chosen = parser.parse_args().family or list(known)
    start, faults, wrong = time.perf_counter(), 0, 0
    with tempfile.TemporaryDirectory(prefix="tinyvit-faults-") as objects, ThreadPoolExecutor(PROCESSES) as pool:
        runs = {n: [(f, pool.submit(outcome, known[n], f, objects)) for f in (None, *known[n].faults)] for n in chosen}
        for name, family in runs.items():
            surprises = 0
            for fault, run in family:
                found, expected = run.result(), "not noticed" if fault is None else "noticed"
                surprises += found != expected
                if found != expected:
                    print(f"{name}: {'without a fault' if fault is None else fault.what}: {found}", flush=True)
            print(f"{name}: {len(family) - 1} faults, {surprises} surprises", flush=True)
            faults, wrong = faults + len(family) - 1, wrong + surprises
    print(f"{faults} faults, {wrong} surprises, {time.perf_counter() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
