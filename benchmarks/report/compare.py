"""Two runs compared: which contenders became faster or slower, beyond the noise and the load of the machine.

Contenders whose code is the same in both runs are controls: libraries of the same version and, if both runs are of one
commit without changes, everything but kernels of the user's own. What the controls of a case have in common in a round
is the load of the machine, so times are compared as multiples of it. How far controls still differ from each other
between the runs is the noise, which a change must exceed. A control itself is never called faster or slower.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..stats import HIGH, Summary, differ, quantile, summarize
from .records import CaseResult, Row, Run

LIBRARIES = ("torch", "jax", "autograd", "onnxruntime")  # contenders "torch-compile" and so on run code of these alone
BUSY = 0.5  # load for each processor from which on a machine is called busy


@dataclass(frozen=True)
class Change:
    """The times of one contender on one case in two runs.

    Attributes
    ----------
    before, after : seconds.
    compared : the same as multiples of the time of the controls in each round; seconds if there are no controls.
    is_control : whether the code is the same in both runs.
    floor : the logarithm of the ratio that a change must exceed.
    """

    case: str
    contender: str
    before: Summary
    after: Summary
    compared: tuple[Summary, Summary]
    is_control: bool = False
    floor: float = 0.0

    @property
    def ratio(self) -> float:
        """How many times as fast after as before, without what the load of the machine changed."""
        return self.compared[0].median / self.compared[1].median

    @property
    def verdict(self) -> str:
        if self.is_control or not differ(*self.compared) or abs(math.log(self.ratio)) <= self.floor:
            return "same"
        return "faster" if self.ratio > 1 else "slower"


def compare(before: Run, after: Run) -> list[Change]:
    """The changes of all that both runs timed, in the order of the first."""
    if before.suite != after.suite:
        return []
    later = {case.label: case for case in after.cases}
    pairs = [(case, later[case.label]) for case in before.cases if case.label in later]
    found = [change for one, other in pairs for change in _of_case(one, other, _controls(before, after, one, other))]
    drifts = [abs(math.log(change.ratio)) for change in found if change.is_control]
    floor = quantile(drifts, HIGH) if drifts else 0.0
    return [Change(**{**vars(change), "floor": floor}) for change in found]


def _of_case(before: CaseResult, after: CaseResult, controls: Sequence[str]) -> list[Change]:
    changes = []
    for row in before.rows:
        other = after.row(row.contender)
        if other is None or row.time is None or other.time is None:
            continue
        others = [name for name in controls if name != row.contender]
        relative = [_relative(case, own, others) for case, own in ((before, row), (after, other))]
        use = all(relative)
        compared = [
            summarize(values if use else own.seconds) for values, own in zip(relative, (row, other), strict=True)
        ]
        changes.append(
            Change(
                before.label, row.contender, row.time, other.time, (compared[0], compared[1]), row.contender in controls
            )
        )
    return changes


def _relative(case: CaseResult, row: Row, controls: Sequence[str]) -> list[float]:
    """The times of each round as multiples of the geometric mean of the controls; empty without controls."""
    rows = [found for name in controls if (found := case.row(name)) and len(found.seconds) == len(row.seconds)]
    if len(rows) < len(controls) or not rows or min(min(r.seconds) for r in (row, *rows)) <= 0:
        return []
    means = [
        math.exp(sum(map(math.log, together)) / len(rows)) for together in zip(*(r.seconds for r in rows), strict=True)
    ]
    return [seconds / mean for seconds, mean in zip(row.seconds, means, strict=True)]


def _controls(before: Run, after: Run, one: CaseResult, other: CaseResult) -> list[str]:
    """The contenders of a case that both runs timed, and whose code is the same in both."""
    if one.sizes != other.sizes:
        return []
    names = [row.contender for row in one.rows if row.seconds and (found := other.row(row.contender)) and found.seconds]
    same = same_code(before, after)
    return [name for name in names if (same and ":" not in name) or _is_same_library(before, after, name)]


def _is_same_library(before: Run, after: Run, contender: str) -> bool:
    library = contender.partition("-")[0]
    if library not in LIBRARIES or library not in before.versions:
        return False
    return before.versions[library] == after.versions.get(library)


def same_code(before: Run, after: Run) -> bool:
    """Whether both runs are of one commit, without changes, and of the same libraries."""
    known = before.commit != "unknown" and not before.commit.endswith("+")
    return known and before.commit == after.commit and before.versions == after.versions


# What a reader must know ----------------------------------------------------------------------------------------------


def described(run: Run, place: str) -> str:
    """The file, the date, the commit and the load of a run."""
    name, _, date = place.rpartition("@")
    file = name if date and run.date.startswith(date) else place
    load = "unknown" if run.machine.load is None else f"{run.machine.load:.2f}"
    return f"{file}: {run.date}, commit {run.commit}, load {load}"


def notes(before: Run, after: Run, changes: Sequence[Change]) -> list[str]:
    """Sentences about what limits the comparison: other machines, load, and code that is not known to differ."""
    told = []
    for name, one, other in (
        ("processor", before.machine.device, after.machine.device),
        ("number of processors", before.machine.processors, after.machine.processors),
        ("number of threads", before.threads, after.threads),
        ("suite", before.suite, after.suite),
    ):
        if one != other:
            told.append(f"the {name} differs: {one} and {other}")
    for library in sorted(before.versions.keys() & after.versions.keys()):
        if before.versions[library] != after.versions[library]:
            told.append(f"{library} differs: {before.versions[library]} and {after.versions[library]}")
    for when, run in (("before", before), ("after", after)):
        if run.machine.load is not None and run.machine.load > BUSY * run.machine.processors:
            told.append(
                f"the machine was busy {when}: load {run.machine.load:.2f} on {run.machine.processors} processors"
            )
    controls = [change for change in changes if change.is_control]
    if same_code(before, after):
        told.append(f"both runs are of the commit {before.commit}, so their code is equal: differences are noise")
    elif "unknown" in (before.commit, after.commit) or before.commit == after.commit:
        told.append("the commits do not say what differs: one is unknown, or has changes that are not committed")
    if controls:
        told.append(
            f"noise: contenders of the same code differ by up to {math.expm1(controls[0].floor):.1%} "
            f"(80 % of {len(controls)} do)"
        )
    elif changes:
        told.append("no contender has the same code in both runs, so the load of the machine cannot be told apart")
    return told


def only_in_one(before: Run, after: Run) -> tuple[list[str], list[str]]:
    """The cases with contenders that only the first run timed, and those that only the second did."""
    timed = [
        {f"{case.label}: {row.contender}": None for case in run.cases for row in case.rows if row.seconds}
        for run in (before, after)
    ]
    return [name for name in timed[0] if name not in timed[1]], [name for name in timed[1] if name not in timed[0]]
