"""The command `python -m benchmarks`."""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from .cases import SUITES, Case, Suite, select_cases
from .contenders import PEERS, Spec, select_contenders
from .contenders.taken_apart import FUSIONS
from .contenders.user import SIGNATURES
from .cpu.measure import Field, Settings, measure_case
from .gpu.budget import MINUTES as GPU_MINUTES
from .machine import describe_commit, describe_machine, describe_versions
from .report.records import Run, compare, read_run

_ROUNDS, _QUICK_ROUNDS, _QUICK_BUDGET = 15, 5, 0.25


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """Verify, then time: tinyvit against NumPy, PyTorch, JAX, and the limits of the machine."""
    if context.invoked_subcommand is None:
        click.echo("python -m benchmarks SUITE [OPTIONS]        -h tells the options\n")
        for suite in SUITES.values():
            click.echo(f"  {suite.name:12}{suite.about}")
        click.echo(f"  {'gpu':12}the kernels on an NVIDIA GPU, their peers and its limits")
        click.echo(f"  {'compare':12}two result files side by side")


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(name.strip() for name in value.split(",") if name.strip())


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_OPTIONS = [
    click.option("--peers", metavar="NAME,...", callback=_names, help=(
        f"Who runs beside tinyvit: {', '.join(spec.name for spec in PEERS)}.  [default: all]")),
    click.option("--shapes", metavar="NAME,...", callback=_names, help="Only these shapes.  [default: all]"),
    click.option("--rounds", type=click.IntRange(1), metavar="N",
                 help=f"At most so many rounds; fewer where the noise is soon low.  [default: {_ROUNDS}]"),
    click.option("--budget", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
                 help="Time for one contender on one case.  [default: by suite]"),
    click.option("--threads", type=click.IntRange(1), metavar="N", default=_usable_processors,
                 help="Threads of every contender.  [default: all processors]"),
    click.option("--baseline", metavar="NAME", help="Whom speed is told against.  [default: torch, else numpy]"),
    click.option("--quick", is_flag=True, help="A few shapes and little time: a look, not a measurement."),
    click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="Write JSON, CSV, plots and an HTML report there."),
]  # fmt: skip


def _add_suite(suite: Suite) -> None:
    def command(kernel: tuple[str, ...] = (), without: tuple[str, ...] | None = None, **options: Any) -> None:
        _run_suite(suite, kernel, without or (), **options)

    decorated: Callable[..., None] = command
    about = f"Benchmark {suite.about}."
    if suite.name in ("attention", "layer_norm"):
        about += f"\n\n--kernel adds a function of your own, float32, verified like all others:\n\n\b\n{SIGNATURES}"
        decorated = click.option("--kernel", metavar="MODULE:FUNCTION", multiple=True, help=(
            "Your own kernel; file.py:function works too."))(decorated)  # fmt: skip
    if suite.name in ("train", "inference"):
        decorated = click.option("--without", metavar="NAME,...", callback=_names, help=(
            f"Also tinyvit with one of these fusions taken apart: {', '.join(FUSIONS)}."))(decorated)  # fmt: skip
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    names = ", ".join(dict.fromkeys(case.shape.name for case in suite.cases))
    main.command(suite.name, help=f"{about}\n\nShapes: {names}.", short_help=suite.about)(decorated)


for _suite in SUITES.values():
    _add_suite(_suite)


@main.command("gpu", short_help="the kernels on an NVIDIA GPU")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", default="gpu-benchmarks.jsonl",
              show_default=True, help="A line for each result; what it holds is not measured again.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=GPU_MINUTES, show_default=True,
              help="What there is no time for is left out; start again, and it goes on with that.")  # fmt: skip
def _gpu(out: Path, minutes: float) -> None:
    """Benchmark attention, layer norm and training steps on an NVIDIA GPU."""
    from tinyvit.backend import check_device

    from .gpu.measure import run

    try:
        check_device("cuda")
    except RuntimeError as reason:
        raise click.ClickException(str(reason)) from reason
    left_out = run(out, click.echo, minutes)
    if left_out:
        click.echo(f"there was no time for {left_out}: start again, and it goes on with them")


def _run_suite(
    suite: Suite,
    kernels: tuple[str, ...],
    without: tuple[str, ...],
    peers: tuple[str, ...] | None,
    shapes: tuple[str, ...] | None,
    rounds: int | None,
    budget: float | None,
    threads: int,
    baseline: str | None,
    quick: bool,
    out: Path | None,
) -> None:
    try:
        specs = select_contenders(peers, kernels, without)
        cases = select_cases(suite, shapes or (suite.quick if quick else ()))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if baseline is not None and baseline not in [spec.name for spec in specs]:
        raise click.UsageError(f"--baseline {baseline} does not take part; {', '.join(s.name for s in specs)} do")
    settings = Settings(
        threads,
        rounds or (_QUICK_ROUNDS if quick else _ROUNDS),
        budget or (_QUICK_BUDGET if quick else suite.budget),
        baseline,
    )
    run = Run(
        suite.name,
        datetime.now().astimezone().isoformat(timespec="seconds"),
        describe_commit(),
        describe_machine(),
        describe_versions(),
        asdict(settings),
    )
    measure_run(run, suite, cases, specs, settings)
    if out is not None:
        from .report.page import write_files

        for path in write_files(run, out):
            click.echo(f"wrote {path}")


def measure_run(run: Run, suite: Suite, cases: Sequence[Case], specs: Sequence[Spec], settings: Settings) -> None:
    """Measure the cases into `run`, printing each table as soon as it is there."""
    from rich.console import Console

    from .report.table import case_table, reasons

    console = Console()
    console.print(f"{run.machine['cpu']}, {settings.threads} threads, commit {run.commit}\n", highlight=False)
    said: set[str] = set()
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        field = Field(settings, Path(folder))
        try:
            for number, case in enumerate(cases, 1):

                def tell(doing: str, title: str = f"{number}/{len(cases)}  {case.label}") -> None:
                    status.update(f"{title}: {doing}")

                result = measure_case(case, specs, field, tell)
                run.cases.append(result)
                console.print(case_table(result, memory=suite.fresh), highlight=False)
                news = [line for line in reasons(result) if line not in said]
                console.print(*(f"  {line}\n" for line in news), sep="", highlight=False, soft_wrap=True)
                said.update(news)
                if suite.fresh:
                    field.close()
        finally:
            field.close()
    if run.ceilings:
        gemm, copy = run.ceilings
        console.print(f"ceilings: GEMM {gemm / 1e9:.0f} GFLOP/s, copy {copy / 1e9:.1f} GB/s", highlight=False)


@main.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
def compare_command(before: Path, after: Path) -> None:
    """Set two result files (JSON) side by side.

    A difference is marked where the ranges from the 20 to the 80 % quantile do not touch.
    """
    from rich.console import Console

    from .report.table import comparison_table

    try:
        runs = read_run(before), read_run(after)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    console = Console()
    for key in ("cpu", "processors"):
        if runs[0].machine[key] != runs[1].machine[key]:
            console.print(f"[yellow]not the same {key}: {runs[0].machine[key]} and {runs[1].machine[key]}[/]")
    if runs[0].settings["threads"] != runs[1].settings["threads"]:
        console.print("[yellow]not the same number of threads[/]")
    changes = compare(*runs)
    if not changes:
        raise click.ClickException("the two files have nothing in common")
    console.print(comparison_table(*runs, changes), highlight=False)
