"""Records of a run: what was measured, and the quantities that follow from it."""

from dataclasses import dataclass, field

from ..stats import Summary, ratios, summarize


@dataclass
class Row:
    """The result of one contender on one case.

    Attributes
    ----------
    seconds : for each round, the median time of a call; empty if the contender was not timed.
    reason : why it was not timed.
    error : the largest error of any output, relative to the largest value of that output.
    peak_memory : of the process, in bytes.
    absent : whether it was not timed because its library is missing or broken; files do not keep this.
    """

    contender: str
    seconds: list[float] = field(default_factory=list)
    reason: str = ""
    error: float | None = None
    peak_memory: int | None = None
    absent: bool = field(default=False, compare=False)

    def give_up(self, reason: str, absent: bool = False) -> None:
        """Drop the times and keep the reason."""
        self.seconds, self.reason, self.absent = [], " ".join(reason.split()), absent

    @property
    def verdict(self) -> str:
        """One word on a contender that took part and was not timed; empty for the others."""
        if not self.reason or self.absent:
            return ""
        return "WRONG" if self.reason.startswith("WRONG") else "failed"

    @property
    def time(self) -> Summary | None:
        return summarize(self.seconds) if self.seconds else None


@dataclass
class CaseResult:
    """The results of all contenders on one case.

    Attributes
    ----------
    name : the operation, unless it is the suite's only one, and the label of the shape: "softmax vit-s 24960x65".
    direction : "forward", "backward" or "step".
    sizes : of the shape, by the names that `cases.py` gives them.
    flops, bytes : the work of one call, as counted by `costs.py`.
    gemm, copy : the ceilings of the machine: operations and bytes per second, medians over the rounds.
    """

    name: str
    direction: str
    sizes: dict[str, int]
    flops: int
    bytes: int | None
    baseline: str = ""
    gemm: float | None = None
    copy: float | None = None
    rows: list[Row] = field(default_factory=list)

    @property
    def label(self) -> str:
        return self.name if self.direction == "step" else f"{self.name} {self.direction}"

    def row(self, contender: str) -> Row | None:
        return next((row for row in self.rows if row.contender == contender), None)

    def speed(self, row: Row) -> Summary | None:
        """How many times as fast as the baseline, summarized over the ratios of each round."""
        baseline = self.row(self.baseline)
        if baseline is None or len(baseline.seconds) != len(row.seconds) or not row.seconds:
            return None
        return summarize(ratios(baseline.seconds, row.seconds))

    def rate(self, row: Row) -> float | None:
        """Floating-point operations per second."""
        return self.flops / row.time.median if row.time and self.flops else None

    def bandwidth(self, row: Row) -> float | None:
        """Bytes per second."""
        return self.bytes / row.time.median if row.time and self.bytes else None

    def share_of_gemm(self, row: Row) -> float | None:
        rate = self.rate(row)
        return rate / self.gemm if rate and self.gemm else None

    def share_of_copy(self, row: Row) -> float | None:
        bandwidth = self.bandwidth(row)
        return bandwidth / self.copy if bandwidth and self.copy else None


@dataclass
class Machine:
    """The computer that a run was made on.

    Attributes
    ----------
    device : the name of the processor.
    processors : how many logical processors the run could use.
    features : instruction sets that matter for the kernels, and variables that forbid some of them.
    memory : in bytes; None where the system does not say.
    load : the average load of the last minute before the run; None where the system does not say.
    """

    device: str
    processors: int
    features: list[str]
    memory: int | None
    system: str
    load: float | None


@dataclass
class Run:
    """The results of one command, with the facts needed to judge them.

    Attributes
    ----------
    date : when the run began, in ISO format with seconds.
    commit : of this checkout, with "+" after it if there were uncommitted changes.
    versions : of Python and of the libraries, by name.
    most_rounds : the largest number of rounds; a case may end earlier.
    budget : seconds for one contender on one case.
    """

    suite: str
    date: str
    commit: str
    machine: Machine
    versions: dict[str, str]
    threads: int
    most_rounds: int
    budget: float
    cases: list[CaseResult] = field(default_factory=list)

    @property
    def contenders(self) -> list[str]:
        """Names of all contenders, in the order of the table."""
        return list(dict.fromkeys(row.contender for case in self.cases for row in case.rows))

    @property
    def ceilings(self) -> tuple[float, float] | None:
        """The GEMM peak and the copy bandwidth, per second: medians over the cases."""
        measured = [(case.gemm, case.copy) for case in self.cases if case.gemm and case.copy]
        if not measured:
            return None
        gemm, copy = zip(*measured, strict=True)
        return summarize(gemm).median, summarize(copy).median
