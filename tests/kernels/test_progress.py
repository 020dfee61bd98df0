"""The compilation of kernels is counted, and the time that is left is that of the kernels that are not compiled yet."""

from pathlib import Path

import pytest
from tinyvit.kernels import cache
from tinyvit.kernels.cpu import progress

TABLE = {
    "linear: _forward_2": 1.0,
    "linear: _backward_2": 2.0,
    "attention: _backward_2": 5.0,
    "conv2d: _forward_2": 4.0,
}
WHAT = "compiling kernels"


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "SECONDS", TABLE)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    return clock


def keep(folder: Path, kernel: str) -> None:
    """Put a file of compiled code into the cache, as Numba names it."""
    place, entry = kernel.split(": ")
    (folder / f"{place}_0123abcd").mkdir(exist_ok=True)
    (folder / f"{place}_0123abcd" / f"numba_cpu.{entry}-77.py311.0123456789abcdef.nbc").touch()


def test_kernels_are_counted_with_the_time_that_is_left(clock: Clock, tmp_path: Path) -> None:
    seen: list[str] = []
    with progress.followed(seen.append):
        assert progress.state() == ""
        assert progress.begin("linear: _forward_2")
        assert seen == [f"{WHAT}: 1 of about 3, about 8 s left"]  # by the table; nobody has called a convolution
        clock.now += 2.0  # twice as long as in the table
        progress.end("linear: _forward_2")
        keep(tmp_path, "linear: _forward_2")
        progress.begin("attention: _backward_2")
        assert (
            seen[-1] == f"{WHAT}: 2 of about 3, about 9 s left"
        )  # 7 s of the table, at (1 + 2) / (2 + 2) of its speed
        keep(tmp_path, "linear: _backward_2")  # by the helper
        assert progress.state() == f"{WHAT}: 3 of about 3, about 4 s left"  # 5 s, at (3 + 2) / (2 + 2)
        progress.end("attention: _backward_2")
        progress.begin("dropout: _apply_2")  # a kernel that the table does not know
        assert seen[-1] == f"{WHAT}: 4 so far"


def test_a_model_that_convolves_needs_its_kernels_too(clock: Clock) -> None:
    with progress.followed(lambda _: None):
        progress.begin("conv2d: _forward_2")
        assert progress.state() == f"{WHAT}: 1 of about 4, about 12 s left"


def test_kernels_that_were_compiled_before_do_not_count(clock: Clock, tmp_path: Path) -> None:
    for kernel in TABLE:
        keep(tmp_path, kernel)
    with progress.followed(lambda _: None):
        progress.begin("linear: _forward_2")  # for another dtype
        assert progress.state() == f"{WHAT}: 1 so far"


def test_nothing_is_counted_that_nobody_follows(clock: Clock) -> None:
    assert not progress.begin("linear: _forward_2")
    shown: list[str] = []
    with progress.followed(shown.append):
        pass
    assert not progress.begin("linear: _forward_2")
    assert shown == []


def test_the_table_names_kernels_that_exist() -> None:
    package = Path(cache.__file__).parent
    assert len(progress.SECONDS) > 10
    for kernel in progress.SECONDS:
        folder, entry = kernel.split(": ")
        sources = [*package.glob(f"{folder}/*.py"), *package.glob(f"cpu/{folder}.py")]
        assert any(f"def {entry}(" in path.read_text("utf-8") for path in sources), kernel
