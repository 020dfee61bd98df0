"""`tinyvit train` and `tinyvit recipe`."""

from pathlib import Path
from typing import Any

import click

from ..backend.terminal import show
from .group import WithKeys, commands, device_option, folder


class _WithRecipes(WithKeys):
    """A command whose help ends with the list of recipes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from ..run.explain import recipes_in_brief

        with formatter.section("Recipes, with minutes on 2 CPU cores and the accuracy to expect"):
            formatter.write_dl(recipes_in_brief(), col_max=16)
        formatter.write("\n  `tinyvit recipe NAME` prints one, with every key, its range and its meaning.\n")


@commands.command(cls=_WithRecipes)
@click.argument("recipe", required=False)
@click.option("--images", "--data", metavar="PATH", help="Train on your own data: a folder of images, or a CSV table.")
@click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Change a key of the recipe.")
@click.option("--out", metavar="DIR", type=folder, help="The run folder, new or empty.  [default: runs/RECIPE]")
@click.option("--resume", "resumed", metavar="DIR", type=folder, help="Resume the run in DIR.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="The dtype of matrix products, attention and GELU, as --set precision=... sets it.",
)
@click.option("--seeds", metavar="0,1,2", help="Train once with each seed, and show mean and spread.")
@device_option
@click.option("--distributed", is_flag=True, help="Train with all processes that mpiexec has started.")
@click.option("--study", is_flag=True, help="Monitor gradients, updates, activations and attention of every layer.")
def train(
    recipe: str | None,
    images: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    resumed: Path | None,
    precision: str | None,
    seeds: str | None,
    distributed: bool,
    study: bool,
) -> None:
    """Train a model.

    RECIPE is the name of a recipe that comes with the package (default: digits), a .toml file, a folder of your own
    images or .wav files (PATH/CLASS/FILE, of which some are held out, or PATH/train/CLASS/FILE beside val and test), or
    a CSV table with the columns file,label; image,caption; image,question,answer; or source,target.

    \b
    tinyvit train
    tinyvit train pictures
    tinyvit train captions.csv
    tinyvit train cifar-10 --data pictures
    tinyvit train mnist --set epochs=3 --set lr=5e-4
    tinyvit train my.toml --out runs/first
    tinyvit train digits --seeds 0,1,2
    tinyvit train --resume runs/first
    tinyvit train --resume runs/first --set epochs=60
    tinyvit train --study
    mpiexec -n 4 tinyvit train mnist --distributed

    The recipe, a line of metrics for each epoch, the weights, a checkpoint and the learning curves are written to the
    run folder. Each run has a new folder: runs/digits, runs/digits-2 ...

    With --study, the run folder also gets study.html and study.png, which show every layer over the run, and
    study.jsonl with their numbers. A warning names the layer and the step as soon as values vanish, explode, die or
    become NaN. The weights are the same as without --study, and training takes less than 3 % longer. Only classifiers
    of images can be monitored.

    With --distributed, the processes that mpiexec has started share the work: on one machine or several, over MPI,
    which pip install "tinyvit[mpi]" brings along. The weights are the same, bit for bit, with any number of processes,
    and a run can be resumed with another number of them.

    Ctrl-C finishes the current step and writes a checkpoint; a second Ctrl-C stops at once. A resumed run ends with
    the same result as a run that was never stopped. --resume with --set trains a finished run further: its learning
    rate begins anew, or stays if it is constant.
    """
    if distributed and (study or seeds is not None):
        raise click.UsageError("--distributed trains one run without monitoring it: leave out --study and --seeds")
    if resumed is None:
        _train(recipe, images, assignments, out, precision, seeds, distributed, study)
    elif recipe is images is precision is out is seeds is None:
        from ..run import loop as training

        group = _group(distributed)
        _show_result(training.resume(resumed, _display(study, group), assignments, group))
    else:
        raise click.UsageError(
            "--resume uses the recipe in DIR: leave out RECIPE, --images, --precision, --seeds and --out"
        )


def _show_result(result: Any) -> None:
    from ..run.results import next_steps

    show(f"{result}\n{next_steps(result)}")


def _group(distributed: bool) -> Any:
    from ..backend import Group, launched
    from ..errors import log

    if not distributed:
        rank, size = launched()
        if size > 1 and rank == 0:
            log.warning(
                f"mpiexec has started {size} processes, and each of them trains a run of its own; with --distributed "
                "they train one together"
            )
        return Group()
    from ..distributed.start import join_group

    return join_group()


def _display(study: bool, group: Any) -> Any:
    from ..run.display import Display, live_display

    if not group.is_first:
        return Display()
    if not study:
        return live_display()
    from ..study.watch.monitor import Monitor

    return Monitor(live_display())


def _train(
    recipe: str | None,
    images: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    precision: str | None,
    seeds: str | None,
    distributed: bool,
    study: bool,
) -> None:
    from ..run import loop as training
    from ..run.own_images import chosen_recipe

    if precision is not None:
        assignments = (*assignments, f"precision={precision}")
    if study and seeds is not None:
        raise click.UsageError("--study monitors one run: leave out --seeds")
    group = _group(distributed)
    chosen, name = chosen_recipe(recipe, images, assignments)
    if seeds is None:
        _show_result(training.train(chosen, name, out, _display(study, group), group))
    else:
        from ..run.sweep import parsed_seeds, sweep

        show(sweep(chosen, name, parsed_seeds(seeds), out, lambda: _display(False, group)))


@commands.command()
@click.argument("name", metavar="NAME")
def recipe(name: str) -> None:
    """Print a recipe with every key, its range and its meaning.

    NAME is a recipe of the package, or a .toml file. The text that is printed is a recipe, too.

    \b
    tinyvit recipe digits
    tinyvit recipe cifar-10 > mine.toml
    """
    from ..run.explain import explained

    show(explained(name))
