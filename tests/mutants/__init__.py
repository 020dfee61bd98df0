"""Planted faults: small edits of the package or of its kernels, each of which must make a test fail.

A test proves something only if it can fail. `python -m tests.mutants [FAMILY ...]` applies each fault of the tables in
this folder to a copy of the sources, runs the tests of its family there, and lists the faults that they did not notice.

The first line of a table, FAMILY.txt, names its tests: a file of tests/kernels and an argument of pytest's -k. After
`run:` the kernels run as plain Python, on tiny sizes; after `compiled:` they are compiled. After `emulated:` the faults
are in CUDA kernels, and the tests in tests/cuda, where g++ compiles kernels for the CPU. After `package:` the faults are
in tinyvit/ instead, and the line names files and folders of tests/, those that notice the most first. Then come the
faults. Each has a line of description, a text that occurs once in the file, and its replacement:

    # the causal mask hides the query's own key
    - n + 1 - start
    + n - start

Below the description, `needs: avx512_bf16` names the level of processor without which the faulty code never runs.
"""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

if sys.argv[0] == "-m":  # which Python replaces once it has found the module of the command; not in its processes
    from tinyvit.backend.process import end_if_environment_is_wrong

    end_if_environment_is_wrong("python -m tests.mutants")

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted(Path(__file__).parent.glob("*.txt"))


@dataclass
class Fault:
    """One edit of a file within kernels/, or within tinyvit/."""

    what: str
    file: str
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    needs: str = field(default="", repr=False)  # a level of processors, see `tinyvit.kernels.cpu.processor`

    def applied(self, source: str) -> str:
        """Return the faulty source; raise LookupError unless the text occurs exactly once."""
        old, new = "\n".join(self.old), "\n".join(self.new)
        if source.count(old) != 1:
            raise LookupError(f"in {self.file} this text occurs {source.count(old)} times, not once:\n{old}")
        return source.replace(old, new)


@dataclass
class Family:
    """The faults of one table, and the arguments of pytest that select the tests that must notice them."""

    arguments: list[str]
    kind: str  # "run", "compiled", "emulated" or "package"
    faults: list[Fault]

    @property
    def sources(self) -> str:
        """The folder of a project that the names of files are relative to."""
        return "tinyvit" if self.kind == "package" else "kernels"

    @property
    def place(self) -> str:
        """The folder of tests/ that pytest is started in."""
        return {"package": ".", "emulated": "cuda"}.get(self.kind, "kernels")


def read(path: Path) -> Family:
    """Read the table in a file."""
    first, *lines = path.read_text("utf-8").splitlines()
    kind, _, arguments = first.partition(": ")
    family, file = Family(shlex.split(arguments), kind, []), ""
    for line in lines:
        mark, text = line[:2], line[2:]
        if mark == "# ":
            family.faults.append(Fault(text, file))
        elif mark == "- ":
            family.faults[-1].old.append(text)
        elif mark == "+ ":
            family.faults[-1].new.append(text)
        elif line.startswith("needs: "):
            family.faults[-1].needs = line.removeprefix("needs: ")
        elif line:
            file = line.removeprefix("file: ")
    return family
