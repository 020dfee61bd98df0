"""Shared by all tests: which implementation computes, how skips are counted, and how hypothesis draws."""

import gc
import os
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

# Tests multiply small matrices. OpenBLAS would share the larger ones among threads that then keep a processor busy for
# a while, waiting for more: several processes of tests take twice the processor time. It reads this when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest

import tinyvit as tv
from tinyvit.engine import Op

hypothesis.settings.register_profile("tinyvit", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile(  # for planted faults, where the first failure is enough
    "faults",
    hypothesis.settings.get_profile("tinyvit"),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    report_multiple_bugs=False,
)
hypothesis.settings.load_profile("tinyvit")
# The output of a command must not depend on which kernels were compiled before.
os.environ |= {"TINYVIT_ANNOUNCE": "0", "TINYVIT_COMPILE_AHEAD": "0"}
# No test cuts the power, so none waits for the disk. Tests that count calls of fsync, or let one fail, replace this.
os.fsync = lambda descriptor: None
# An operation without samples() has none: tests/functional/test_names.py says so, and all files can be collected.
for forgetful in (op for op in Op.registry.values() if not hasattr(op, "samples")):
    forgetful.samples = staticmethod(lambda: iter(()))
# A test that needs real data asks for it by `data_dir`, which skips where there is none. Any other test must pass on a
# machine without data and without a network, so it sees neither.
if "TINYVIT_DATA" in os.environ:
    os.environ["TINYVIT_DATA_OF_TESTS"] = os.environ.pop("TINYVIT_DATA")  # the processes of pytest -n read it too
address_of = socket.getaddrinfo


def address_on_this_machine(host: Any, *arguments: Any, **options: Any) -> Any:
    if host in ("localhost", "127.0.0.1", "::1", "", None):
        return address_of(host, *arguments, **options)
    raise OSError(f"a test asked for the address of {host}, but tests use no network")


socket.getaddrinfo = address_on_this_machine


WHOLE_RUNS = (
    *(
        "test_captured_cpu",
        "test_cli",
        "test_damage",
        "test_docs",
        "test_fuzz",
        "test_resume",
        "test_runs",
        "test_smoke",
    ),
    *("test_train", "test_train_failures", "test_weights"),
)


@pytest.fixture(autouse=True)
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute with the plain rules, which are the reference; tests of kernels and of dispatch choose for themselves.

    Tests of whole runs compute as users do, since they compare with runs in other processes.
    """
    with tv.use_kernels("auto" if request.module.__name__ in WHOLE_RUNS else "numpy"), workers_or_none():
        yield


def workers_or_none() -> AbstractContextManager[None]:
    """Let kernels do without worker threads where several processes of tests share the processors.

    A worker spins for a millisecond or two after a call, because in a training step the next one follows at once. Tests
    call kernels now and then: workers would spin more than compute, and keep the processors from the other processes.
    Results do not depend on the number of threads. The tests of kernels, which check that, have workers; so has what
    runs in a process of its own, and every test if TINYVIT_THREADS is set.
    """
    threads = sys.modules.get("tinyvit.kernels.cpu.threads")  # imported when the first kernel is used
    if threads is None or "PYTEST_XDIST_WORKER" not in os.environ or "TINYVIT_THREADS" in os.environ:
        return nullcontext()
    return threads.without_workers()


@pytest.fixture
def data_dir(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function from the name of a real data set to its folder; the test skips if it is not there."""

    def find(name: str) -> Path:
        root = os.environ.get("TINYVIT_DATA_OF_TESTS")
        if not root:
            pytest.skip(f"needs the data set {name}: TINYVIT_DATA is not set")
        if not (Path(root) / name).is_dir():
            pytest.skip(f"needs the data set {name}: TINYVIT_DATA has no folder of that name")
        monkeypatch.setenv("TINYVIT_DATA", root)
        return Path(root) / name

    return find


def pytest_collection() -> None:
    gc.disable()  # what is made while tests are collected stays


def pytest_collection_finish() -> None:
    """Let the garbage collector run less often, and hide the tests themselves from it.

    They stay, and so does much of what tests compile and parse. A full collection visits all of it, a quarter of a
    second each time, and as often as users have them they took a tenth of the time of all tests.
    """
    gc.enable()
    gc.set_threshold(10_000, 10, 100)
    freeze_objects()


def freeze_objects() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture
def few_objects() -> None:
    """Let `gc.collect()` visit only what the test makes: what thousands of tests before it left takes a second."""
    freeze_objects()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where no GPU works, and give the reason."""
    if item.get_closest_marker("gpu"):
        from tinyvit.backend import check_device

        try:
            check_device("cuda")
        except RuntimeError as reason:
            pytest.skip(f"needs a GPU: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report how many tests were skipped, by reason, since a skipped test proves nothing."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    terminalreporter.write_line(f"skips: {len(skipped)}")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"  {count} x {reason}")


# The study page in a browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from peers import peer

    playwright = peer("playwright.sync_api", "Playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: there is none")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    path = tmp_path_factory.mktemp("page") / "study.html"
    from tinyvit.study.page.write import page_of
    from tinyvit.study.subject import about, study_run

    subject = study_run()
    path.write_text(page_of(subject.trace, about(subject)), "utf-8")
    return subject.trace, path


@pytest.fixture
def few_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train in a temporary folder, on few generated scenes."""
    from tiny_run import isolate

    from tinyvit.data import scenes

    monkeypatch.setattr(scenes, "TRAIN_SCENES", 40)
    monkeypatch.setattr(scenes, "TEST_SCENES", 12)
    scenes.of_split.cache_clear()
    isolate(tmp_path, monkeypatch)
    yield
    scenes.of_split.cache_clear()
