"""Planted faults: small edits of the kernels, each of which must make their tests fail.

A test proves something only if it can fail. `python -m tests.mutants [FAMILY ...]` applies each fault of the tables in
this folder to a copy of the kernels, runs the tests of its family there, and lists the faults that they did not notice.

A table, FAMILY.txt, first says which tests it runs: a file of tests/kernels and pytest's -k. With `compiled:` instead
of `run:` the kernels are compiled for them; otherwise they run as plain Python, on tiny sizes. With `emulated:` they
are CUDA kernels, and the tests those of tests/cuda, where g++ compiles them for the CPU. Then come the faults,
each a line of what it is, the text that stands once in the file, and what replaces it:

    # the causal mask hides the query's own key
    - n + 1 - start
    + n - start
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Fault:
    """One edit of a file within kernels/."""

    what: str
    file: str
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def applied(self, source: str) -> str:
        """The faulty source; LookupError if the text is not there, or not once."""
        old, new = "\n".join(self.old), "\n".join(self.new)
        if source.count(old) != 1:
            raise LookupError(f"in {self.file} this text stands {source.count(old)} times, not once:\n{old}")
        return source.replace(old, new)


@dataclass
class Family:
    """The faults of one table, and the arguments of pytest for the tests that must notice them."""

    arguments: list[str]
    kind: str  # "run", "compiled" or "emulated"
    faults: list[Fault]


def read(path: Path) -> Family:
    """The table in a file."""
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
        elif line:
            file = line.removeprefix("file: ")
    return family
