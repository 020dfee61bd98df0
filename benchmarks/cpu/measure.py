"""One case measured: every contender is verified, then timed round by round, in an order that rotates."""

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

PAUSE = 0.15  # seconds between contenders, in which the threads of the last one stop spinning: OpenBLAS needs 0.1
_MOST_CALLS = 10_000  # in a round

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """The choices of a run.

    Attributes
    ----------
    rounds : the largest number of rounds; a case ends earlier when its ratios are quiet.
    budget : seconds for one contender on one case.
    baseline : the contender that speed is relative to; by default the first of `BASELINES` that takes part.
    timeout : seconds that a process has for one answer.
    """

    threads: int
    rounds: int
    budget: float
    baseline: str | None = None
    timeout: float = 300.0


class Processes:
    """The processes of a run. Each starts when it is first needed."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.equal_runs: list[float] = []  # the rates of one and the same product, measured in each round
        self._running: dict[str, Process] = {}

    def contender(self, spec: Spec) -> Process:
        return self._get(spec.name, "benchmarks.cpu.worker", (spec.factory, spec.option, spec.needs), spec)

    def reference(self) -> Process:
        return self._get("reference", "benchmarks.cpu.reference", ())

    def ceilings(self) -> Process:
        return self._get("ceilings", "benchmarks.cpu.ceilings", ())

    def _get(self, name: str, module: str, arguments: Sequence[str], spec: Spec | None = None) -> Process:
        if name not in self._running:
            extra = spec.environment if spec else {}
            self._running[name] = Process(module, arguments, self.folder, self.settings.threads, extra)
        return self._running[name]

    def drop(self, name: str) -> None:
        self._running.pop(name).close()

    def close(self) -> None:
        for name in list(self._running):
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


def measure_case(case: Case, specs: Sequence[Spec], processes: Processes, notify: Notify) -> CaseResult:
    """Verify and time all contenders that take part in `case`."""
    flops, size = cost(case)
    sizes = {name: value for name, value in asdict(case.shape).items() if name != "name"}
    result = CaseResult(case.name, case.direction, sizes, flops, size)
    taking_part = [spec for spec in specs if spec.serves(case)]
    result.rows = [Row(spec.name) for spec in taking_part]
    if reason := refer(case, processes, notify):
        for row in result.rows:
            row.give_up(reason)
        return result
    runners = []
    for spec, row in zip(taking_part, result.rows, strict=True):
        if verify(case, spec, row, processes, notify) and (runner := _runner(spec, row, processes)):
            runners.append(runner)
    _time_rounds(result, runners, processes, notify)
    _finish(runners, processes)
    return result


def refer(case: Case, processes: Processes, notify: Notify) -> str:
    """Write the inputs of a case and the outputs to expect into the folder of the run; return the reason of failure."""
    notify("reference")
    try:
        processes.reference().ask("refer", processes.settings.timeout, case=case.id, folder=str(processes.folder))
    except LostError as error:
        processes.drop("reference")
        return f"no reference to compare with: {error}"
    return ""


def verify(case: Case, spec: Spec, row: Row, processes: Processes, notify: Notify) -> bool:
    """Have a contender verified, after `refer`; return false, with the reason in `row`, if it must not be timed."""
    if spec.missing:
        row.give_up(spec.missing, absent=True)
        return False
    notify(f"verifying {spec.name}")
    settings = processes.settings
    try:
        process = processes.contender(spec)
        answer = process.ask("prepare", settings.timeout, case=case.id, folder=str(processes.folder))
    except LostError as error:
        row.give_up(str(error))
        processes.drop(spec.name)
        return False
    if "skip" in answer:
        row.give_up(answer["skip"], absent=True)
        processes.drop(spec.name)
    elif "wrong" in answer:
        row.give_up(f"WRONG: {answer['wrong']}")
    else:
        row.error = answer["error"]
    return not row.reason


def _runner(spec: Spec, row: Row, processes: Processes) -> Runner | None:
    """Warm up a verified contender, and choose the number of calls in a round; None, with the reason, if it fails."""
    settings = processes.settings
    try:
        runner = Runner(spec, row, processes.contender(spec))
        slot = settings.budget / settings.rounds
        for _ in range(2):  # the first estimate includes warming up
            runner.calls = max(1, min(_MOST_CALLS, int(slot / max(runner.time(settings.timeout), 1e-7))))
        return runner
    except LostError as error:
        row.give_up(str(error))
        processes.drop(spec.name)
        return None


def _time_rounds(result: CaseResult, runners: list[Runner], processes: Processes, notify: Notify) -> None:
    """Time every runner once a round, until the ratios are quiet or no round is left; remove runners that fail."""
    settings = processes.settings
    ceilings: list[tuple[float, float]] = []
    for count in range(settings.rounds):
        if not runners:
            return
        notify(f"round {count + 1}")
        measure_ceilings(ceilings, processes)
        shift = count % len(runners)
        for runner in [*runners[shift:], *runners[:shift]]:
            time.sleep(PAUSE)
            try:
                runner.row.seconds.append(runner.time(settings.timeout))
            except LostError as error:
                runner.row.give_up(str(error))
                processes.drop(runner.spec.name)
                runners.remove(runner)
        result.baseline = _baseline(settings.baseline, runners)
        if ceilings:
            result.gemm, result.copy = (statistics.median(values) for values in zip(*ceilings, strict=True))
        seconds = {runner.spec.name: runner.row.seconds for runner in runners}
        reference = seconds.pop(result.baseline, [])
        series = [ratios(reference, own) for own in seconds.values()] or [reference]
        if reference and is_quiet(series):
            return


def measure_ceilings(ceilings: list[tuple[float, float]], processes: Processes) -> None:
    """Append the GEMM peak and the copy bandwidth, if they can be measured."""
    try:
        found = processes.ceilings().ask("measure", processes.settings.timeout)
    except LostError:  # the table then has times without shares
        processes.drop("ceilings")
        return
    ceilings.append((found["gemm"], found["copy"]))
    processes.equal_runs.append(found["gemm"])


def _baseline(wanted: str | None, runners: Sequence[Runner]) -> str:
    names = [runner.spec.name for runner in runners]
    return next((name for name in (wanted, *BASELINES, *names) if name in names), "")


def _finish(runners: Sequence[Runner], processes: Processes) -> None:
    """Verify the outputs of the last timed calls, and ask for the peak memory."""
    for runner in runners:
        try:
            answer = runner.process.ask("finish", processes.settings.timeout)
        except LostError as error:
            runner.row.give_up(str(error))
            processes.drop(runner.spec.name)
            continue
        runner.row.peak_memory = answer["peak_memory"]
        if "wrong" in answer:
            runner.row.give_up(f"WRONG after it was timed: {answer['wrong']}")
