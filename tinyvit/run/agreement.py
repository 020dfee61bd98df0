"""Whether the processes of a group can train together: they must compute the same from the same recipe and data."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..backend import Group
from ..errors import RecipeError, TinyvitError, log
from ..optim.tree import shards_of
from ..recipe import Recipe
from .folder import RunError
from .state import Training

SHARDS = 8  # of runs by several processes, unless the recipe states a number
_LONG = 60  # characters of a value in a message


class DisagreementError(TinyvitError):
    """The processes of a group differ in something that must be the same for all."""


def sharded(recipe: Recipe, group: Group, of_run: Path | None = None) -> Recipe:
    """Return the recipe by which `group` trains: several processes need shards, of which each computes some.

    A warning names keys that have no effect, and processes that have nothing to compute.

    Raises RecipeError if there are fewer shards than processes or, in a new run, exact sums in bfloat16, and RunError
    if the run in the folder `of_run` has none, because shards would change its bits.
    """
    settings = recipe.train
    if settings.wire != "float32" and settings.reduce == "exact" and (group.divides or of_run is None):
        raise RecipeError(
            f"train.wire is {settings.wire!r}, but train.reduce='exact' adds up gradients in float32; set "
            "train.reduce=fast, or train.wire=float32"
        )
    if group.is_first:
        for reason in without_effect(recipe, group, of_run is None):
            log.warning(reason)
    if not group.divides:
        return recipe
    if not settings.shards and of_run is not None:
        raise RunError(f"{of_run} was begun by one process with train.shards=0; resume it without --distributed")
    if not settings.shards:
        settings = dataclasses.replace(settings, shards=max(SHARDS, group.size))
    if settings.shards < group.size and settings.reduce == "exact":
        raise RecipeError(
            f"train.shards is {settings.shards}, and there are {group.size} processes; set train.shards={group.size} "
            "or more, or start fewer processes"
        )
    return dataclasses.replace(recipe, train=settings)


def without_effect(recipe: Recipe, group: Group, is_new: bool = True) -> Iterator[str]:
    """Yield a sentence for each key about several processes that changes nothing when `group` trains by `recipe`.

    A resumed run has a number of shards also if nobody asked for it, so that number is not named there.
    """
    settings, size, is_alone = recipe.train, group.size, not group.divides
    is_fast = settings.reduce == "fast"
    if settings.wire != "float32" and (is_alone or not is_fast):
        why = "a process without --distributed sends no gradients" if is_alone else "exact sums are sent in float32"
        yield f"train.wire={settings.wire} has no effect: {why}"
    if is_fast and is_alone and not settings.shards:
        yield "train.reduce=fast has no effect: a process without --distributed adds its gradients to those of no other"
    if is_fast and is_new and settings.shards not in (0, size):
        by = "the only process computes" if size == 1 else f"each of {size} processes computes"
        yield f"train.shards={settings.shards} has no effect: with train.reduce=fast {by} one part of a batch"
    shards = size if is_fast else settings.shards or max(SHARDS, size)
    batch = recipe.data.batch_size
    idle = [rank for rank in range(size) if not _samples_of(rank, size, shards, batch)]
    if idle and size <= shards:
        yield (
            f"{len(idle)} of {size} processes have nothing to compute, because data.batch_size is {batch} and "
            f"train.shards {shards}; fewer processes are as fast"
        )


def _samples_of(rank: int, size: int, shards: int, batch: int) -> int:
    """Return how many samples of a batch the process `rank` computes, see `tinyvit.data.Loader.sharded_batches`."""
    own = shards_of(rank, size, shards)
    return batch * own.stop // shards - batch * own.start // shards


def require_agreement(training: Training) -> None:
    """Raise DisagreementError in all processes if one of them has another version, recipe or data than the others."""
    group = training.group
    if group.size == 1:
        return
    every = group.gather(_facts(training))
    for rank, facts in enumerate(every):
        for name, value in facts.items():
            expected = every[0].get(name)
            if value != expected:
                raise DisagreementError(
                    f"rank {rank} has another {name} than rank 0 ({value!s:.{_LONG}} and {expected!s:.{_LONG}}); "
                    "all processes need the same package, libraries, processors, recipe and data"
                )


def _facts(training: Training) -> dict[str, Any]:
    """Return all that must be the same in every process, by a name for messages."""
    facts: dict[str, Any] = {f"version of {name}": value for name, value in training.arithmetic.items()}
    facts |= {f"checksum of the {split} data": value for split, value in training.fingerprints.items()}
    return facts | {
        "recipe": hashlib.sha256(training.recipe.to_toml().encode()).hexdigest(),
        "checksum of the package": _sources(),
        "weights to start from": hashlib.sha256(
            b"".join(p.numpy().tobytes() for p in training.model.parameters())
        ).hexdigest(),
    }


def _sources() -> str:
    """Return a checksum of all source files of the package."""
    found = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return found.hexdigest()
