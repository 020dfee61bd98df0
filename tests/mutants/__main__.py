"""Run tests with one planted fault after the other; the exit status is 1 if one is not noticed.

Without arguments, only the faults whose files, or whose tests, have changed since the tests noticed them are run, and
one of ten others, which every change of the sources draws anew; record.tsv says what was noticed when.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from . import TABLES, Family, Fault, read
from .record import Entry, Record, changed, digest_of, drawn, read_record, seed_of_sources, write_record
from .trials import NOT_NOTICED, NOTICED, SKIPPED, Outcome, tried, without_fault

PROCESSES = 2


@dataclass
class Work:
    """The faults of a family that are run, and the number of those that are because something has changed."""

    family: Family
    faults: list[Fault]
    changed: int


def chosen(families: dict[str, Family], names: list[str], everything: bool, record: Record) -> dict[str, Work]:
    """Return what to run: all faults of the families that were named, or what has changed and some of the rest."""
    if names or everything:
        return {n: Work(families[n], families[n].faults, len(families[n].faults)) for n in names or families}
    seed, work = seed_of_sources(), {}
    for name, family in families.items():
        due = changed(record, name, family)
        others = [fault for fault in family.faults if fault not in due]
        work[name] = Work(family, due + drawn(name, others, seed), len(due))
    return work


def surprises(name: str, work: Work, runs: list[Future[Outcome]], objects: str, record: Record) -> int:
    """Wait for the faults of a family, print those that were not noticed, and return how many these are.

    The tests that noticed the others must pass without a fault. Faults whose tests are skipped stay in the record.
    """
    outcomes = [run.result() for run in runs]
    noticed = {fault.what: o.test for fault, o in zip(work.faults, outcomes, strict=True) if o.found == NOTICED}
    skipped = {fault.what for fault, o in zip(work.faults, outcomes, strict=True) if o.found == SKIPPED}
    wrong = [(f.what, o.found) for f, o in zip(work.faults, outcomes, strict=True) if o.found not in (NOTICED, SKIPPED)]
    if noticed:
        tests = sorted(set(noticed.values()))
        found = without_fault(work.family, tests if all(tests) else [], objects)
        if found != NOT_NOTICED:
            wrong.append(("without a fault", found))
            noticed = {}
    for fault in work.faults:
        if fault.what not in skipped:
            record.pop((name, fault.what), None)
        if test := noticed.get(fault.what):
            record[name, fault.what] = Entry(test, digest_of(work.family, fault, test))
    for what, found in wrong:
        print(f"{name}: {what}: {found}", flush=True)
    lacking = f", {len(skipped)} with a test that needs what this machine lacks" if skipped else ""
    print(f"{name}: {described(work)}, {len(wrong)} surprises{lacking}", flush=True)
    return len(wrong)


def described(work: Work) -> str:
    rest = len(work.faults) - work.changed
    return f"{work.changed} faults{f' and {rest} drawn' if rest else ''}"


def main() -> int:
    """Run the command line."""
    families = {path.stem: read(path) for path in TABLES}
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("family", nargs="*", help=f"run all faults of some of {', '.join(families)}")
    parser.add_argument("--all", action="store_true", help="run all faults of all families")
    parser.add_argument("--record", action="store_true", help="write the record of what was noticed")
    parser.add_argument("--list", action="store_true", help="only say how many faults of each family would be run")
    given = parser.parse_args()
    if unknown := set(given.family) - families.keys():
        parser.error(f"there is no family {', '.join(sorted(unknown))}; there are {', '.join(families)}")
    record, start, wrong = read_record(), time.perf_counter(), 0
    work = chosen(families, given.family, given.all, record)
    if given.list:
        for name, w in work.items():
            print(f"{name}: {described(w)} of {len(w.family.faults)}")
        return 0
    with tempfile.TemporaryDirectory(prefix="tinyvit-faults-") as objects, ThreadPoolExecutor(PROCESSES) as pool:

        def begun(name: str, family: Family, fault: Fault) -> Future[Outcome]:
            entry = record.get((name, fault.what))
            return pool.submit(tried, family, fault, objects, entry.test if entry else None)

        runs = {name: [begun(name, w.family, fault) for fault in w.faults] for name, w in work.items()}
        for name, w in work.items():
            if w.faults:
                wrong += surprises(name, w, runs[name], objects, record)
                if given.record:
                    write_record(record, families)
    faults, due = sum(len(w.faults) for w in work.values()), sum(w.changed for w in work.values())
    total = sum(len(family.faults) for family in families.values())
    print(f"{faults} of {total} faults, {due} of them because something changed, {wrong} surprises, ", end="")
    print(f"{time.perf_counter() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
