"""The same recipe with several seeds: one run for each, and their mean and spread in one table."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from ..checkpoint import atomic_write
from ..errors import RecipeError
from ..recipe import Recipe
from .display import Display
from .folder import RECIPE, RunError, new_folder, write_file
from .loop import resume, train
from .results import Result, csv_of, next_steps

TABLE = "seeds.csv"


def parsed_seeds(text: str) -> list[int]:
    """Return the seeds in a text such as "0,1,2". Raises RecipeError."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**63 or len(set(seeds)) < len(seeds):
        raise RecipeError(f"--seeds is {text!r}; it must be different integers from 0, such as 0,1,2")
    return seeds


def sweep(recipe: Recipe, name: str, seeds: Sequence[int], out: Path | None, display: Callable[[], Display]) -> str:
    """Train `recipe` once with each seed, in the folders seed-0, seed-1 ... of one folder, and return a table.

    The folder is `out`, or runs/<name>-seeds, numbered on if it exists. Runs that `out` already has are resumed if they
    are of the same recipe. Raises what `tinyvit.run.loop.train` raises.
    """
    folder = out or new_folder(f"{name}-seeds")
    results = []
    for seed in seeds:
        own = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=seed))
        place = folder / f"seed-{seed}"
        if (place / RECIPE).is_file():
            result = resume(place, display())
            if result.recipe != own:
                raise RunError(f"{place} is a run of another recipe; give another --out")
        else:
            result = train(own, name, place, display())
        results.append(result)
    rows = [["seed", "validation_accuracy", "test_accuracy", "test_loss", "seconds"]]
    rows += [[str(seed), *(f"{x:.6g}" for x in _figures(result))] for seed, result in zip(seeds, results, strict=True)]
    write_file(folder / TABLE, lambda path: atomic_write(path, csv_of(rows)))
    return _table(seeds, results, folder)


def _figures(result: Result) -> tuple[float, float, float, float]:
    kept = result.metrics[result.test["epoch"] - 1]
    return kept["val_accuracy"], result.accuracy, result.test["loss"], result.metrics[-1]["seconds"]


def _table(seeds: Sequence[int], results: Sequence[Result], folder: Path) -> str:
    """Return a line for each seed, then the mean and the standard deviation over the seeds."""
    figures = [_figures(result) for result in results]
    of_curves = "validation" if results[0].recipe.data.validation else "test (each epoch)"
    lines = [f"{'seed':>9}  {of_curves:>17}  {'test':>9}  {'test loss':>9}  {'time':>7}"]
    for seed, (a, b, loss, seconds) in zip(seeds, figures, strict=True):
        lines.append(f"{seed:9}  {100 * a:15.2f} %  {100 * b:7.2f} %  {loss:9.4f}  {seconds:5.0f} s")
    columns = list(zip(*figures, strict=True))
    means = [sum(column) / len(column) for column in columns]
    rows = [("mean", means)]
    if len(results) > 1:
        spread = [
            math.sqrt(sum((x - mean) ** 2 for x in column) / (len(column) - 1))
            for column, mean in zip(columns, means, strict=True)
        ]
        rows.append(("deviation", spread))
    for name, (a, b, loss, seconds) in rows:
        lines.append(f"{name:>9}  {100 * a:15.2f} %  {100 * b:7.2f} %  {loss:9.4f}  {seconds:5.0f} s")
    return "\n".join([*lines, f"-> {folder}", next_steps(results[0])])
