"""The command `python -m benchmarks`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from tinyvit.kernels.cpu.quota import usable_processors

from .cases import SUITES, Suite, meant, select_cases
from .contenders import PEERS, select_contenders
from .contenders.unfused import FUSIONS
from .contenders.user import SIGNATURES
from .gpu.budget import MINUTES as GPU_MINUTES
from .machine import ROOT
from .processes import main as processes

RESULTS, PAGES = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "pages"
FIRST_LOOK = "gpu-first-look.jsonl"
_ROUNDS, _QUICK_ROUNDS, _QUICK_BUDGET = 15, 5, 0.25


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """Verify, then time: tinyvit against NumPy, PyTorch, JAX, and the limits of the machine."""
    if context.invoked_subcommand is None:
        click.echo("python -m benchmarks SUITE [OPTIONS]        -h shows the options\n")
        for suite in SUITES.values():
            click.echo(f"  {suite.name:12}{suite.about}")
        click.echo(f"  {'gpu':12}the kernels on an NVIDIA GPU, their peers and its limits")
        click.echo(f"  {'processes':12}training by several processes against one")
        click.echo(f"  {'compare':12}two runs side by side")
        click.echo(f"  {'report':12}pages and pictures of runs")


# The suites -----------------------------------------------------------------------------------------------------------


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(name.strip() for name in value.split(",") if name.strip())


_OPTIONS = [
    click.option(
        "--peers",
        metavar="NAME,...",
        callback=_names,
        help=f"The contenders to compare tinyvit with: {', '.join(spec.name for spec in PEERS)}.  [default: all]",
    ),
    click.option("--shapes", metavar="NAME,...", callback=_names, help="Only these shapes.  [default: all]"),
    click.option(
        "--rounds",
        type=click.IntRange(1),
        metavar="N",
        help=f"The largest number of rounds; a case ends earlier when the noise is low.  [default: {_ROUNDS}]",
    ),
    click.option(
        "--budget",
        type=click.FloatRange(0, min_open=True),
        metavar="SECONDS",
        help="Time for one contender on one case.  [default: by suite]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        metavar="N",
        envvar="TINYVIT_THREADS",
        default=usable_processors,
        help="Threads of every contender.  [default: TINYVIT_THREADS, else all processors]",
    ),
    click.option(
        "--baseline", metavar="NAME", help="The contender that speed is relative to.  [default: torch, else numpy]"
    ),
    click.option("--quick", is_flag=True, help="A few shapes and little time: a first look, not a measurement."),
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Append the results to the CSV file of the suite in this folder.",
    ),
]
_KERNEL = click.option(
    "--kernel",
    metavar="MODULE:FUNCTION",
    multiple=True,
    help="Your own kernel; file.py:function works too.",
)
_WITHOUT = click.option(
    "--without",
    metavar="NAME,...",
    callback=_names,
    help=f"Also tinyvit without one of these fusions: {', '.join(FUSIONS)}.",
)


def _add_suite(suite: Suite) -> None:
    def command(kernel: tuple[str, ...] = (), without: tuple[str, ...] | None = None, **options: Any) -> None:
        _run_suite(suite, kernel, without or (), **options)

    decorated: Callable[..., None] = command
    about = f"Benchmark {suite.about}."
    if suite.name in ("attention", "layer_norm"):
        about += f"\n\n--kernel adds a function of your own, float32, verified like all others:\n\n\b\n{SIGNATURES}"
        decorated = _KERNEL(decorated)
    if suite.name in ("train", "inference"):
        decorated = _WITHOUT(decorated)
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    names = ", ".join(dict.fromkeys(case.shape.name for case in suite.cases))
    main.command(suite.name, help=f"{about}\n\nShapes: {names}.", short_help=suite.about)(decorated)


for _suite in SUITES.values():
    _add_suite(_suite)


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
    from .cpu.measure import Settings
    from .cpu.run import measure_suite
    from .cpu.user_kernels import OwnKernelError, checked, failed_later
    from .report.csv_files import append_run, check_file

    try:
        specs = select_contenders(peers, kernels, without)
        own = [checked(spec, threads) for spec in specs[len(specs) - len(kernels) :]]
        specs[len(specs) - len(kernels) :] = own
        cases = select_cases(suite, shapes or (suite.quick if quick else ()))
        if out is not None:
            check_file(suite.name, out)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if baseline is not None and baseline not in [spec.name for spec in specs]:
        names = [spec.name for spec in specs]
        near = meant(baseline, names)
        raise click.UsageError(f"--baseline {baseline} does not take part{near}; available: {', '.join(names)}")
    settings = Settings(
        threads,
        rounds or (_QUICK_ROUNDS if quick else _ROUNDS),
        budget or (_QUICK_BUDGET if quick else suite.budget),
        baseline,
    )
    try:
        run = measure_suite(suite, cases, specs, settings, own)
    except OwnKernelError as error:
        raise click.ClickException(str(error)) from error
    if out is not None:
        click.echo(f"appended to {append_run(run, out)}")
    if failed := failed_later(run, [spec.name for spec in own]):
        raise click.ClickException(failed)


main.add_command(processes)


# The GPU --------------------------------------------------------------------------------------------------------------


@main.command("gpu", short_help="the kernels on an NVIDIA GPU")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    default="gpu-benchmarks.jsonl",
    show_default=True,
    help="The file that gets a line for each result; results that it holds are not measured again.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=GPU_MINUTES,
    show_default=True,
    help="The time for all results; the next start continues with those that it was too short for.",
)
@click.option(
    "--first-look",
    is_flag=True,
    help="Trials, products, training, sanitizers, benchmarks and profiles, each with a limit on its time, in about "
    f"half an hour. The results, beside what was predicted, go to {FIRST_LOOK}.",
)
def _gpu(out: Path, minutes: float, first_look: bool) -> None:
    """Benchmark attention, layer norm and training steps on an NVIDIA GPU."""
    from tinyvit.backend import check_device

    from .gpu.first_look import run as look
    from .gpu.first_look import steps
    from .gpu.measure import run

    try:
        check_device("cuda")
    except RuntimeError as reason:
        raise click.ClickException(str(reason)) from reason
    if first_look:
        failed = look(Path(FIRST_LOOK), click.echo, steps(minutes))
        click.echo(f"{failed} steps were not passed; what they said is in {FIRST_LOOK}")
        return
    left_out = run(out, click.echo, minutes)
    if left_out:
        click.echo(f"there was no time for {left_out}: start again, and it continues with them")


# Results --------------------------------------------------------------------------------------------------------------


@main.command("compare", short_help="two runs side by side")
@click.argument("before")
@click.argument("after", required=False)
def _compare(before: str, after: str | None) -> None:
    """Compare two runs: BEFORE and AFTER are CSV files of results.

    FILE.csv means the last run in the file, FILE.csv@DATE the last one whose date begins with DATE, for example
    benchmarks/results/train.csv@2026-11-21. Without AFTER, the last two runs of BEFORE are compared.

    Times are compared as multiples of those of contenders whose code is the same in both runs (libraries of the same
    version; all, if the commit is the same), so that the load of the machine cancels. A change is marked where the
    ranges from the 20 to the 80 % quantile do not overlap, and it exceeds what equal code differs by.
    """
    from rich.console import Console
    from rich.markup import escape

    from .report.compare import compare, described, notes, only_in_one
    from .report.csv_files import find_runs
    from .report.table import comparison_table

    try:
        runs = [find_runs(before)[-1], find_runs(after)[-1]] if after else find_runs(before)[-2:]
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if len(runs) < 2:
        raise click.UsageError(f"{before} holds one run; name a second file or run to compare it with")
    old, new = runs
    console, changes = Console(), compare(old, new)
    for when, run, place in (("before", old, before), ("after", new, after or before)):
        console.print(f"{when:7} {escape(described(run, place))}", highlight=False, soft_wrap=True)
    for note in notes(old, new, changes):
        console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True)
    if not changes:
        raise click.ClickException("the two runs have no case and contender in common")
    console.print(comparison_table(old, new, changes), highlight=False)
    for when, names in zip(("before", "after"), only_in_one(old, new), strict=True):
        for name in names:
            console.print(f"only {when}: {escape(name)}", highlight=False, soft_wrap=True)


@main.command("report", short_help="pages and pictures of runs")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    default=PAGES,
    help="The folder for the pages.  [default: benchmarks/pages]",
)
def _report(files: tuple[str, ...], out: Path) -> None:
    """Write an HTML page and a PNG picture of each run in these CSV files.

    FILE.csv@DATE means the runs whose date begins with DATE. The default is every file in benchmarks/results.
    """
    from .report.csv_files import find_runs
    from .report.page import write_page

    for place in files or sorted(map(str, RESULTS.glob("*.csv"))):
        try:
            runs = find_runs(place)
        except (OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error
        for run in runs:
            for path in write_page(run, out):
                click.echo(f"wrote {path}")
