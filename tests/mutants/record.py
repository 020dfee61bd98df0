"""The record of which test noticed each planted fault, and of what these two were then.

That a test notices a fault stays true as long as the fault, the file it is planted in, the test and the files of tests/
that the test imports are the same. Of the faults for which they are, `python -m tests.mutants` runs only some: another
change, of a fixture or of another module, may weaken many tests at once, and one of many faults then shows it.
"""

import ast
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import ROOT, Family, Fault

RECORD = Path(__file__).with_suffix(".tsv")
SOURCES = {".py", ".cu", ".cuh", ".h"}


@dataclass(frozen=True)
class Entry:
    """One line of the record: the test that noticed a fault, and a digest of what both were then."""

    test: str
    digest: str


Record = dict[tuple[str, str], Entry]  # by the name of a family and the description of a fault


def read_record(path: Path = RECORD) -> Record:
    """Read the record; it is empty if there is none."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    rows = [line.split("\t") for line in lines]
    return {(family, what): Entry(test, digest) for family, what, test, digest in rows}


def write_record(record: Record, families: Mapping[str, Family], path: Path = RECORD) -> None:
    """Write the entries of all faults that there are, in the order of the tables."""
    keys = [(name, fault.what) for name, family in families.items() for fault in family.faults]
    rows = [(*key, record[key].test, record[key].digest) for key in keys if key in record]
    part = path.with_suffix(".part")
    part.write_text("".join("\t".join(row) + "\n" for row in rows), "utf-8")
    part.replace(path)


def digest_of(family: Family, fault: Fault, test: str, root: Path = ROOT) -> str:
    """Return a digest of a fault, the file it is planted in, a test, and the files that the test consists of."""
    found = hashlib.sha256(repr((family.kind, fault, test)).encode())
    file = root / test.partition("::")[0]
    for path in (root / family.sources / fault.file, *files_of(file, root / "tests")):
        content = path.read_bytes() if path.exists() else b""
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()[:16]


@cache
def files_of(file: Path, tests: Path) -> tuple[Path, ...]:
    """Return a file of tests, the modules of tests/ that it imports, directly or not, and headers that g++ includes."""
    found = [file] if file.exists() else []
    for path in found:
        if path.suffix == ".py":
            places = [path.parent, tests / "support", *([tests / "kernels"] if path.parent.name == "cuda" else [])]
            named = [place / f"{name}.py" for name in _imported(path) for place in places]
            found += [module for module in named if module.exists() and module not in found]
    headers = sorted((tests / "cuda").glob("*.h")) if (tests / "cuda" / "emulator.py") in found else []
    return (*found, *headers)


def _imported(path: Path) -> list[str]:
    """Return the top-level names of the modules that a file imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module.partition(".")[0])
    return names


def changed(record: Record, name: str, family: Family) -> list[Fault]:
    """Return the faults of a family that the record does not know as noticed, with their files as they are now."""
    return [
        fault
        for fault in family.faults
        if (entry := record.get((name, fault.what))) is None or entry.digest != digest_of(family, fault, entry.test)
    ]


def drawn(name: str, faults: list[Fault], seed: str) -> list[Fault]:
    """Return one of ten faults, the same ones for the same seed."""
    return [fault for fault in faults if one_of_ten(f"{name} {fault.what}", seed)]


def one_of_ten(name: str, seed: str) -> bool:
    """Whether a seed draws this one; it draws one of ten."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]) % 10 == 0


def seed_of_sources(root: Path = ROOT) -> str:
    """Return a digest of all sources and tests: every change of them draws other faults."""
    found = hashlib.sha256()
    for folder in ("tinyvit", "kernels", "tests"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SOURCES:
                found.update(str(path.relative_to(root)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
