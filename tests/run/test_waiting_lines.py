"""Lines in a pipe: one after ten silent seconds, which says for how long it would have said the same."""

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
def test_a_line_comes_after_ten_seconds_and_says_for_how_long_the_count_is_the_same(
    lines, capsys, monkeypatch, seed
) -> None:
    chance, count = random.Random(seed), 1

    def state() -> str:
        total = chance.choice(["{} of about {}, about {} s left", "{} of about {}, about {} s left", "{} so far"])
        return "compiling kernels: " + total.format(count, count + chance.randint(1, 9), chance.randint(1, 99))

    monkeypatch.setattr(progress, "state", state)
    lines.compiling(state())
    capsys.readouterr()
    found = [(0.0, "compiling kernels: 1 ")]
    for _ in range(12):
        count += chance.randint(0, 2)
        found += printed(lines, capsys, chance.randint(1, 25))
    assert [now for now, _ in found] == [10 * i for i in range(len(found))]
    assert len(found) > 3
    since, before = 0.0, 1
    for now, line in found[1:]:
        number = int(re.search(r"\d+", line)[0])
        since, before = (since if number == before else now), number
        assert line.endswith(f", unchanged for {now - since:.0f} s") == (now > since)


@pytest.mark.parametrize("measuring", [False, True])
def test_what_stands_still_is_said_to_do_so(lines, capsys, monkeypatch, measuring) -> None:
    monkeypatch.setattr(progress, "state", lambda: "")
    if measuring:
        lines.measuring("validation", 3, 7)
    found = printed(lines, capsys, 30)
    assert [now for now, _ in found] == [10, 20, 30]
    ends = (
        ["", ", unchanged for 10 s", ", unchanged for 20 s"] if measuring else [f": {n} s so far" for n in (10, 20, 30)]
    )
    assert all(line.endswith(end) for (_, line), end in zip(found, ends, strict=True))
    assert len({line for _, line in found}) == 3


def test_what_is_new_is_not_called_unchanged(lines, capsys) -> None:
    found = []
    for batch in range(6):
        lines.measuring("validation", batch, 7)
        found += printed(lines, capsys, 10)
    assert [now for now, _ in found] == [10, 20, 30, 40, 50, 60]
    assert not any("unchanged" in line for _, line in found)
