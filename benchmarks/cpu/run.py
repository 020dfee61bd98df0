"""A run: the cases of a suite measured one after another, each with its table as soon as it is complete."""

import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from ..cases import Case, Suite
from ..contenders import Spec
from ..machine import describe_commit, describe_machine, describe_versions
from ..report.records import Run
from ..report.table import case_table, reasons
from .measure import Processes, Settings, measure_case


def measure_suite(suite: Suite, cases: Sequence[Case], specs: Sequence[Spec], settings: Settings) -> Run:
    """Measure these cases of a suite, and print the table of each."""
    run = Run(
        suite.name,
        datetime.now().astimezone().isoformat(timespec="seconds"),
        describe_commit(),
        describe_machine(),
        describe_versions(),
        settings.threads,
        settings.rounds,
        settings.budget,
    )
    console = Console()
    console.print(f"{run.machine.device}, {settings.threads} threads, commit {run.commit}\n", highlight=False)
    shown: set[str] = set()
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        processes = Processes(settings, Path(folder))
        try:
            for number, case in enumerate(cases, 1):

                def notify(step: str, title: str = f"{number}/{len(cases)}  {case.label}") -> None:
                    status.update(f"{title}: {step}")

                result = measure_case(case, specs, processes, notify)
                run.cases.append(result)
                console.print(case_table(result, memory=suite.fresh), highlight=False)
                new = [line for line in reasons(result) if line not in shown]
                console.print(*(f"  {line}\n" for line in new), sep="", highlight=False, soft_wrap=True)
                shown.update(new)
                if suite.fresh:
                    processes.close()
        finally:
            processes.close()
    if run.ceilings:
        gemm, copy = run.ceilings
        console.print(f"ceilings: GEMM {gemm / 1e9:.0f} GFLOP/s, copy {copy / 1e9:.1f} GB/s", highlight=False)
    return run
