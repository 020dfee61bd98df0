"""The results of a suite as one CSV file: a line for each contender on each case, and runs appended one after another.

Every line says all about its run (date, commit, machine, versions), so files can be joined, sorted and filtered by any
tool. What can be computed from `round_seconds` is written for readers (`seconds`, `ratio`) and ignored when a file is
read. Numbers have six digits.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from .records import CaseResult, Machine, Row, Run

OF_ROWS = ("contender", "seconds", "ratio", "baseline", "round_seconds", "error", "peak_memory", "reason")
OF_CASES = ("sizes", "flops", "bytes", "gemm_flops_per_second", "copy_bytes_per_second")
OF_RUNS = (
    *("date", "commit", "device", "processors", "threads", "features", "memory", "system", "load"),
    *("most_rounds", "budget", "versions"),
)
COLUMNS = ("suite", "case", "direction", *OF_ROWS, *OF_CASES, *OF_RUNS)


# Writing --------------------------------------------------------------------------------------------------------------


def check_file(suite: str, folder: Path) -> None:
    """Raise ValueError if the file of this suite in `folder` is not ours, so that no run can be appended to it."""
    path = folder / f"{suite}.csv"
    if path.exists():
        read_runs(path)


def append_run(run: Run, folder: Path) -> Path:
    """Append `run` to the file of its suite in `folder`; folder and file are made if there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.suite}.csv"
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(to_csv(run, header=is_new))
    return path


def to_csv(run: Run, header: bool = True) -> str:
    """The lines of one run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(_lines(run))
    return text.getvalue()


def _lines(run: Run) -> Iterator[dict[str, str]]:
    machine = run.machine
    of_run = {
        "date": run.date,
        "commit": run.commit,
        "device": machine.device,
        "processors": _text(machine.processors),
        "threads": _text(run.threads),
        "features": " ".join(machine.features),
        "memory": _text(machine.memory),
        "system": machine.system,
        "load": _text(machine.load),
        "most_rounds": _text(run.most_rounds),
        "budget": _text(run.budget),
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }
    for case in run.cases:
        of_case = {
            "sizes": " ".join(f"{name}={size}" for name, size in case.sizes.items()),
            "flops": _text(case.flops),
            "bytes": _text(case.bytes),
            "gemm_flops_per_second": _text(case.gemm),
            "copy_bytes_per_second": _text(case.copy),
        }
        for row in case.rows:
            speed = case.speed(row)
            yield {
                "suite": run.suite,
                "case": case.name,
                "direction": case.direction,
                "contender": row.contender,
                "seconds": _text(row.time.median if row.time else None),
                "ratio": _text(speed.median if speed else None),
                "baseline": case.baseline,
                "round_seconds": " ".join(map(_text, row.seconds)),
                "error": _text(row.error),
                "peak_memory": _text(row.peak_memory),
                "reason": row.reason,
                **of_case,
                **of_run,
            }


def _text(number: float | None) -> str:
    return "" if number is None else str(number) if isinstance(number, int) else f"{number:.6g}"


# Reading --------------------------------------------------------------------------------------------------------------


def read_runs(path: Path) -> list[Run]:
    """The runs in a file, in the order of their first lines; OSError or ValueError, with the path, if that fails."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return from_csv(file.read())
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not a file of benchmark results: {error}") from error


def from_csv(text: str) -> list[Run]:
    """The runs in the text of a file; ValueError if it is not one of ours."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"it lacks the columns {', '.join(missing)}")
    runs: dict[tuple[str, ...], Run] = {}
    cases: dict[tuple[str, ...], CaseResult] = {}
    for line in reader:
        if None in line or None in line.values():
            raise ValueError(f"line {reader.line_num} has not as many fields as the first line")
        of_run = (line["suite"], *(line[name] for name in OF_RUNS))
        of_case = (*of_run, line["case"], line["direction"])
        if of_run not in runs:
            runs[of_run] = _run(line)
        if of_case not in cases:
            cases[of_case] = _case(line)
            runs[of_run].cases.append(cases[of_case])
        cases[of_case].rows.append(_row(line))
    return list(runs.values())


def _run(line: Mapping[str, str]) -> Run:
    machine = Machine(
        line["device"],
        int(line["processors"]),
        line["features"].split(),
        _whole_number(line["memory"]),
        line["system"],
        _number(line["load"]),
    )
    return Run(
        line["suite"],
        line["date"],
        line["commit"],
        machine,
        dict(version.rsplit(" ", 1) for version in line["versions"].split(", ") if version),
        int(line["threads"]),
        int(line["most_rounds"]),
        float(line["budget"]),
    )


def _case(line: Mapping[str, str]) -> CaseResult:
    return CaseResult(
        line["case"],
        line["direction"],
        {name: int(size) for name, size in (item.split("=") for item in line["sizes"].split())},
        int(line["flops"]),
        _whole_number(line["bytes"]),
        line["baseline"],
        _number(line["gemm_flops_per_second"]),
        _number(line["copy_bytes_per_second"]),
    )


def _row(line: Mapping[str, str]) -> Row:
    return Row(
        line["contender"],
        [float(seconds) for seconds in line["round_seconds"].split()],
        line["reason"],
        _number(line["error"]),
        _whole_number(line["peak_memory"]),
    )


def _number(text: str) -> float | None:
    return float(text) if text else None


def _whole_number(text: str) -> int | None:
    return int(text) if text else None


# Choosing a run -------------------------------------------------------------------------------------------------------


def find_runs(place: str) -> list[Run]:
    """The runs that `place` names: FILE.csv, all of them; FILE.csv@DATE, those whose date begins with DATE."""
    name, _, date = place.rpartition("@")
    if not name or Path(place).exists():
        name, date = place, ""
    runs = read_runs(Path(name))
    found = [run for run in runs if run.date.startswith(date)]
    if not found:
        dates = ", ".join(run.date for run in runs) or "none"
        raise ValueError(f"{name} has no run of {date}; available: {dates}")
    return found
