"""Training on after the end of a run: which keys of its recipe may change, and what its learning rate does then.

The schedule of a finished run has come to its end, so it begins anew. With train.schedule = "constant" the rate stays
as it is. With "cooldown" it is train.lr at once, and falls in the last of the added steps, so that a run that was
trained at a constant rate may be cooled down at any time (Haegele et al. 2024, arXiv:2405.18392). Else it rises to
train.lr again and falls over the added epochs, a warm restart (Loshchilov and Hutter 2017, arXiv:1608.03983).
The recipe notes the epoch of the restart in train.continued_from, so that the continued run can be
interrupted and resumed like any other.
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import atomic_write
from ..errors import RecipeError
from ..recipe import Recipe
from .folder import RECIPE, RunError, resume_command, write_file

CHANGEABLE = ("epochs", "lr", "min_lr", "schedule", "cooldown", "warmup_epochs", "patience", "checkpoint_minutes")
STEADY = ("constant", "cooldown")  # schedules that stay at train.lr without another warm-up


def continued(recipe: Recipe, folder: Path, assignments: Sequence[str], is_finished: bool, epoch: int) -> Recipe:
    """Return the recipe by which a finished run of `epoch` epochs continues.

    Raises RunError if the run is not finished, and RecipeError if other keys are changed or no epoch is added.
    """
    changed = recipe.override(assignments)
    before, now = dataclasses.asdict(recipe), dataclasses.asdict(changed)
    others = [
        f"{section}.{key}"
        for section in before
        for key in before[section]
        if before[section][key] != now[section][key]
        and not (section == "train" and key in CHANGEABLE)
        and section != "about"
    ]
    if others:
        allowed = ", ".join(f"train.{key}" for key in CHANGEABLE)
        raise RecipeError(
            f"--resume can change {allowed}, not {', '.join(others)}; start a new run, for example with "
            f"task.start_from={folder}"
        )
    if not is_finished:
        raise RunError(
            f"{folder} has trained {epoch} of {recipe.train.epochs} epochs: end it first, with "
            f"{resume_command(folder)}, then continue it with --set; or, if it cannot be ended because values become "
            f"infinite or NaN, train again: {retry_command(folder, recipe, assignments)}"
        )
    if changed.train.epochs <= epoch:
        raise RecipeError(f"train.epochs is {changed.train.epochs}, and {folder} has trained {epoch}; give more")
    train = dataclasses.replace(changed.train, continued_from=epoch)
    about = dataclasses.replace(changed.about, accuracy=0.0)
    return dataclasses.replace(changed, train=train, about=about)


def retry_command(folder: Path, recipe: Recipe, assignments: Sequence[str]) -> str:
    """Return the command that trains anew by the recipe of `folder`, with `assignments`, in another folder.

    A run that continued another one starts from its last weights that are good.
    """
    changes = [*assignments]
    if recipe.train.continued_from:
        changes += ["continued_from=0", f"start_from={folder}"]
    words = ["tinyvit", "train", str(folder / RECIPE)]
    words += [word for change in changes for word in ("--set", change)]
    return shlex.join([*words, "--out", f"{folder}-again"])


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Replace the recipe of a run by the one by which it continues. Raises TrainingFailed."""
    write_file(folder / RECIPE, lambda path: atomic_write(path, recipe.to_toml().encode()))


def is_continuation(recipe: Recipe, position: Mapping[str, Any], changed: Sequence[str]) -> bool:
    """Return whether a checkpoint is the end of the run that `recipe` continues, from which only `changed` keys differ.

    That is so if the process was killed after the recipe was replaced, and before it wrote a checkpoint.
    """
    allowed = {f"train.{key}" for key in (*CHANGEABLE, "continued_from")}
    is_end = position["epoch"] == recipe.train.continued_from > 0 and position["batch"] == 0
    return is_end and set(changed) <= allowed
