"""A run: every contender in a process of its own, verified, then timed round by round, in an order that rotates."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..cases import Case
from ..contenders import BASELINES, Spec
from ..costs import cost
from ..report.records import CaseResult, Row
from ..stats import is_quiet, ratios
from .channel import LostError, Process

_PAUSE = 0.15  # seconds between contenders, till the threads of the one before stop spinning: OpenBLAS needs 0.1
_MOST_CALLS = 10_000  # in a round

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What may be chosen. `budget` is the time for one contender on one case, `timeout` for one answer, in seconds."""

    threads: int
    rounds: int
    budget: float
    baseline: str | None = None
    timeout: float = 300.0


class Field:
    """The processes of a run, started when they are first needed."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self._processes: dict[str, Process] = {}

    def contender(self, spec: Spec) -> Process:
        return self._get(spec.name, "benchmarks.cpu.worker", (spec.factory, spec.option), spec)

    def reference(self) -> Process:
        return self._get("reference", "benchmarks.cpu.reference", ())

    def ceilings(self) -> Process:
        return self._get("ceilings", "benchmarks.cpu.ceilings", ())

    def _get(self, name: str, module: str, arguments: Sequence[str], spec: Spec | None = None) -> Process:
        if name not in self._processes:
            extra = spec.environment if spec else {}
            self._processes[name] = Process(module, arguments, self.folder, self.settings.threads, extra)
        return self._processes[name]

    def drop(self, name: str) -> None:
        self._processes.pop(name).close()

    def close(self) -> None:
        for name in list(self._processes):
            self.drop(name)


@dataclass
class Runner:
    """A contender that has been verified and is being timed."""

    spec: Spec
    row: Row
    process: Process
    calls: int = 1

    def time(self, timeout: float) -> float:
        """The median seconds of a call, over the calls of one round."""
        return statistics.median(self.process.ask("time", timeout, calls=self.calls)["seconds"])


def measure_case(case: Case, specs: Sequence[Spec], field: Field, notify: Notify) -> CaseResult:
    """Verify and time all contenders that take part in `case`."""
    flops, size = cost(case)
    result = CaseResult(case.id, case.label, case.operation, case.direction, asdict(case.shape), flops, size)
    taking_part = [spec for spec in specs if spec.serves(case)]
    result.rows = [Row(spec.name) for spec in taking_part]
    notify("reference")
    try:
        field.reference().ask("refer", field.settings.timeout, case=case.id, folder=str(field.folder))
    except LostError as error:
        field.drop("reference")
        for row in result.rows:
            row.give_up(f"no reference to compare with: {error}")
        return result
    runners = []
    for spec, row in zip(taking_part, result.rows, strict=True):
        notify(f"verifying {spec.name}")
        runner = _prepare(case, spec, row, field)
        if runner is not None:
            runners.append(runner)
    _time_rounds(result, runners, field, notify)
    _finish(runners, field)
    return result


def _prepare(case: Case, spec: Spec, row: Row, field: Field) -> Runner | None:
    """Start the contender and have it verified; None, with the reason in `row`, if it shall not be timed."""
    if spec.missing:
        row.give_up(spec.missing)
        return None
    try:
        process = field.contender(spec)
        answer = process.ask("prepare", field.settings.timeout, case=case.id, folder=str(field.folder))
        if "wrong" in answer:
            row.give_up(f"WRONG: {answer['wrong']}")
            return None
        row.deviations = answer["deviations"]
        runner = Runner(spec, row, process)
        slot = field.settings.budget / field.settings.rounds
        for _ in range(2):  # the second estimate is made warm
            runner.calls = max(1, min(_MOST_CALLS, int(slot / max(runner.time(field.settings.timeout), 1e-7))))
        return runner
    except LostError as error:
        row.give_up(str(error))
        field.drop(spec.name)
        return None


def _time_rounds(result: CaseResult, runners: list[Runner], field: Field, notify: Notify) -> None:
    """Rounds of one turn each, until the ratios are quiet or the rounds are used up; runners that fail leave."""
    settings = field.settings
    for count in range(settings.rounds):
        if not runners:
            return
        notify(f"round {count + 1}")
        _measure_ceilings(result, field)
        shift = count % len(runners)
        for runner in [*runners[shift:], *runners[:shift]]:
            time.sleep(_PAUSE)
            try:
                runner.row.seconds.append(runner.time(settings.timeout))
            except LostError as error:
                runner.row.give_up(str(error))
                field.drop(runner.spec.name)
                runners.remove(runner)
        result.baseline = _baseline(settings.baseline, runners)
        seconds = {runner.spec.name: runner.row.seconds for runner in runners}
        reference = seconds.pop(result.baseline, [])
        series = [ratios(reference, own) for own in seconds.values()] or [reference]
        if reference and is_quiet(series):
            return


def _measure_ceilings(result: CaseResult, field: Field) -> None:
    try:
        found = field.ceilings().ask("measure", field.settings.timeout)
    except LostError:  # shares are left out, times are not
        field.drop("ceilings")
        return
    result.gemm.append(found["gemm"])
    result.copy.append(found["copy"])


def _baseline(wanted: str | None, runners: Sequence[Runner]) -> str:
    names = [runner.spec.name for runner in runners]
    return next((name for name in (wanted, *BASELINES, *names) if name in names), "")


def _finish(runners: Sequence[Runner], field: Field) -> None:
    """Verify what was timed last, and ask for the peak memory."""
    for runner in runners:
        try:
            answer = runner.process.ask("finish", field.settings.timeout)
        except LostError as error:
            runner.row.give_up(str(error))
            field.drop(runner.spec.name)
            continue
        runner.row.peak_memory = answer["peak_memory"]
        if "wrong" in answer:
            runner.row.give_up(f"WRONG after it was timed: {answer['wrong']}")
