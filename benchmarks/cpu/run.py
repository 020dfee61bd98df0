"""A run: the cases of a suite measured one after another, each with its table as soon as it is complete."""

import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from tinyvit.backend.words import counted

from ..cases import Case, Suite
from ..contenders import Spec
from ..machine import describe_commit, describe_machine, describe_versions
from ..report.records import Run
from ..report.table import case_table, reasons
from ..stats import MIN_ROUNDS, NOISY, spread
from .measure import Processes, Settings, measure_case
from .user_kernels import require_right


def measure_suite(
    suite: Suite, cases: Sequence[Case], specs: Sequence[Spec], settings: Settings, own: Sequence[Spec] = ()
) -> Run:
    """Measure these cases of a suite, and print the table of each.

    Those of `specs` that are kernels of a user, `own`, are verified in all cases first. Raises OwnKernelError.
    """
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
    threads = counted(settings.threads, "threads")
    console.print(f"{run.machine.device}, {threads}, commit {run.commit}\n", highlight=False)
    shown: set[str] = set()
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        processes = Processes(settings, Path(folder))
        try:
            require_right(cases, own, processes, lambda step: status.update(f"your kernels first: {step}"))
            for number, case in enumerate(cases, 1):

                def notify(step: str, title: str = f"{number}/{len(cases)}  {case.label}") -> None:
                    status.update(f"{title}: {step}")

                result = measure_case(case, specs, processes, notify)
                run.cases.append(result)
                about = f"{run.machine.device}, {threads}"
                console.print(case_table(result, memory=suite.fresh, about=about), highlight=False)
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
    if warning := noise_warning(processes.equal_runs):
        console.print(f"[yellow]{warning}[/]", highlight=False)
    return run


def noise_warning(rates: Sequence[float]) -> str:
    """A sentence on how much repeated equal runs differed; empty if that is little, or if there were few."""
    if len(rates) < MIN_ROUNDS or spread(rates) < NOISY:
        return ""
    return (
        f"This machine is noisy: in {len(rates)} equal runs, the speed of one product varied by {spread(rates):.0%} "
        "(between the 20 and 80 % quantiles). Times may be off by as much; ratios of the same rounds are safer."
    )
