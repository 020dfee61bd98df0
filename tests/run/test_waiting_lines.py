"""Lines in a pipe: one for all that is new, at most one in ten seconds, and rarely one that says the same again."""

import itertools
import random
import re
from collections.abc import Iterator

import pytest
from tinyvit.kernels.cpu import progress

from tinyvit.run import display
from tinyvit.run.display import Lines


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """A display without its thread, at a clock of our own."""
    monkeypatch.setattr(display, "time", Clock())
    monkeypatch.setattr(display, "can_start_threads", lambda: False)
    with Lines() as shown:
        yield shown


def printed(lines: Lines, capsys: pytest.CaptureFixture[str], seconds: int) -> list[tuple[float, str]]:
    """The lines of so many seconds, each with the time at which it came."""
    found = []
    for _ in range(seconds):
        display.time.now += 1
        lines.report_if_silent()
        found += [(display.time.now, line.strip()) for line in capsys.readouterr().out.splitlines()]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_kernels_are_counted_by_a_line_only_where_the_count_is_new(lines, capsys, monkeypatch, seed) -> None:
    chance, count = random.Random(seed), 1

    def state() -> str:
        total = chance.choice(["{} of about {}, about {} s left", "{} of about {}, about {} s left", "{} so far"])
        return "compiling kernels: " + total.format(count, count + chance.randint(1, 9), chance.randint(1, 99))

    monkeypatch.setattr(progress, "state", state)
    lines.compiling(state())
    found = [(0.0, capsys.readouterr().out.strip())]
    for _ in range(12):
        count += chance.randint(0, 2)
        found += printed(lines, capsys, chance.randint(1, 25))
    numbers = [int(re.search(r"\d+", line)[0]) for _, line in found]
    gaps = [(after - before) for (before, _), (after, _) in itertools.pairwise(found)]
    assert len(numbers) > 3
    for gap, (number, following) in zip(gaps, itertools.pairwise(numbers), strict=True):
        assert gap >= (60 if number == following else 10)


@pytest.mark.parametrize("measuring", [False, True])
def test_what_stands_still_is_said_again_after_a_minute(lines, capsys, monkeypatch, measuring) -> None:
    monkeypatch.setattr(progress, "state", lambda: "")
    if measuring:
        lines.measuring("validation", 3, 7)
    times = [now for now, _ in printed(lines, capsys, 200)]
    assert times == [10, 70, 130, 190]


def test_what_goes_on_is_said_every_ten_seconds(lines, capsys) -> None:
    found = []
    for batch in range(6):
        lines.measuring("validation", batch, 7)
        found += [now for now, _ in printed(lines, capsys, 10)]
    assert found == [10, 20, 30, 40, 50, 60]
