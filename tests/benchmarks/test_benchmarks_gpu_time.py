"""The benchmarks of a GPU end when their time is over, and a later start continues with what they left out."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.cli import main
from benchmarks.gpu import cases as gpu_cases
from benchmarks.gpu import measure as gpu_measure
from benchmarks.gpu.budget import LEFT_OUT, MINUTES
from benchmarks.gpu.clock import Clock

SECONDS = 1 / 60  # in minutes


class FakeClock(Clock):
    """A clock that calls a function once."""

    def __init__(self) -> None:
        pass

    def seconds(self, function: Callable[[], Any], cold: bool) -> float:
        function()
        return 1e-6


class HastyClock(Clock):
    """The clock of a device that never keeps the host waiting."""

    def __init__(self) -> None:
        device = SimpleNamespace(synchronize=lambda: None)
        self._cuda = SimpleNamespace(Device=lambda: device)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The contenders in the order in which they were made: one of "a" compiles, and one of "b" never ends."""
    order: list[str] = []

    def contender(case: str, name: str) -> gpu_cases.Contender:
        def make() -> Callable[[], Any]:
            order.append(f"{case} {name}")
            return lambda: time.sleep(1e6) if (case, name) == ("b", "slow") else None

        return name, make

    def cases() -> Any:
        for case in "abc":
            names = ["torch.compile", "raw", "slow"] if case == "a" else ["raw", "slow"]
            yield gpu_cases.Case(case, "float32", 1.0, 1.0), [contender(case, name) for name in names]

    monkeypatch.setattr(gpu_measure, "attention_cases", cases)
    monkeypatch.setattr(gpu_measure, "layer_norm_cases", tuple)
    monkeypatch.setattr(gpu_measure, "step_cases", tuple)
    monkeypatch.setattr(gpu_measure, "Clock", FakeClock)
    monkeypatch.setattr(gpu_measure, "ceilings", lambda clock: {"copy_bytes_per_s": 1.0, "gemm_flop_per_s": 1.0})
    return order


def outcomes(path: Path) -> dict[str, str]:
    """For each contender in the file "measured", or why it was not."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    names = [f"{line['case']} {line['contender']}" for line in lines if line["contender"]]
    assert max(Counter(names).values()) == 1
    return {
        f"{line['case']} {line['contender']}": line.get("refused", "measured") for line in lines if line["contender"]
    }


@pytest.mark.slow  # half of the budget passes until the interruption; a smaller one would not do on a busy machine
def test_cases_take_turns_and_a_contender_that_never_ends_is_interrupted(made: list[str], tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    assert gpu_measure.run(path, lambda line: None, 20 * SECONDS) == 1
    assert made == ["b raw", "c raw", "a raw", "b slow", "c slow", "a slow", "a torch.compile"]
    assert outcomes(path) == {name: LEFT_OUT if name == "b slow" else "measured" for name in made}


@pytest.mark.slow
def test_what_was_left_out_is_reported_and_measured_by_a_later_start(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyvit.backend.check_device", lambda name: name)
    arguments = ["gpu", "--out", str(tmp_path / "gpu.jsonl"), "--minutes"]
    first = CliRunner().invoke(main, [*arguments, str(1e-6 * SECONDS)])
    assert "there was no time for 7: start again, and it continues with them" in first.output
    assert made == []
    assert set(outcomes(tmp_path / "gpu.jsonl").values()) == {LEFT_OUT}
    second = CliRunner().invoke(main, [*arguments, str(20 * SECONDS)])
    assert "there was no time for 1:" in second.output
    made.clear()
    CliRunner().invoke(main, [*arguments, str(0.5 * SECONDS)])
    assert made == ["b slow"]


def test_a_clock_without_time_left_calls_only_as_often_as_necessary() -> None:
    calls: list[int] = []
    clock = HastyClock()
    clock.seconds_each(lambda: calls.append(1), 2)
    assert len(calls) == 10  # five rounds
    clock.limit = 0.0
    clock.seconds_each(lambda: calls.append(1), 2)
    assert len(calls) == 12


def test_both_commands_for_a_gpu_take_less_than_ten_minutes() -> None:
    source = Path(__file__).parents[1].joinpath("cuda", "test_gpu.py").read_text("utf-8")
    (tests,) = re.findall(r"^MINUTES = (\d+)$", source, re.MULTILINE)
    assert int(tests) + MINUTES <= 9  # one more minute is for starting them
