"""Two runs compared: which contenders became faster or slower, beyond the noise."""

from dataclasses import dataclass

from ..stats import Summary, differ
from .records import Run


@dataclass(frozen=True)
class Change:
    """The times of one contender on one case in two runs."""

    case: str
    contender: str
    before: Summary
    after: Summary

    @property
    def ratio(self) -> float:
        """How many times as fast after as before."""
        return self.before.median / self.after.median

    @property
    def verdict(self) -> str:
        if not differ(self.before, self.after):
            return "same"
        return "faster" if self.ratio > 1 else "slower"


def compare(before: Run, after: Run) -> list[Change]:
    """The changes of all that both runs timed, in the order of the first."""
    if before.suite != after.suite:
        return []
    later = {(case.label, row.contender): row for case in after.cases for row in case.rows}
    pairs = [(case.label, row, later.get((case.label, row.contender))) for case in before.cases for row in case.rows]
    return [
        Change(label, row.contender, row.time, other.time)
        for label, row, other in pairs
        if other and row.time and other.time
    ]
