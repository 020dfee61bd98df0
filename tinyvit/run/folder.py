"""Run folders: what lies in them, how a new one is made, and how a trained model is read back.

A run folder holds recipe.toml (every key), metrics.jsonl (a line for each epoch), model.safetensors (the weights to
use), checkpoint.safetensors (all that `tinyvit train --resume` needs) and curves.png.
"""

import dataclasses
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import default_device
from ..checkpoint import atomic_write, load
from ..errors import CheckpointError, RecipeError, TinyvitError
from ..models import ViT
from ..nn import Module
from ..tasks import DataSpec, mistake_in, task_of
from ..tasks.base import AnyDataset
from .recipe import Recipe, load_recipe

RECIPE, METRICS, CURVES = "recipe.toml", "metrics.jsonl", "curves.png"
MODEL, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"

SHIPPED = Path(__file__).parents[1] / "weights"  # <recipe>.safetensors each, trained by that recipe


class RunError(TinyvitError):
    """A run folder that cannot be made, found, or gone on with."""


# What lies in a run, by its recipe ------------------------------------------------------------------------------------


def load_data(recipe: Recipe, split: str) -> AnyDataset:
    """Load one split ("train", "test") of the data that `recipe` names; of the train split, what it learns from."""
    dataset = task_of(recipe).load(split)
    return dataset.first(recipe.data.limit) if split == "train" and recipe.data.limit else dataset


def build_model(recipe: Recipe, data: DataSpec) -> Module:
    """Make the model of `recipe` for such data, with new weights. Raises RecipeError if its keys do not fit."""
    try:
        return task_of(recipe).build(data)
    except ValueError as error:
        raise mistake_in(recipe.model, error) from error


def encoders_of(model: Module) -> dict[str, Any]:
    """The encoders of a model by the names "vision" and "text"; a ViT is one itself."""
    if isinstance(model, ViT):
        return {"vision": model}
    return {name: getattr(model, name) for name in ("vision", "text") if getattr(model, name, None) is not None}


# Keys of an encoder that belong to what it was trained for: they are not taken from a run, and not frozen.
_OF_THE_TASK = ("head.", "norm.", "fc_norm.")


def freeze_encoders(model: Module, recipe: Recipe) -> None:
    """Have the encoders that task.freeze names not learn, but for what no run gives them. Raises RecipeError."""
    frozen, encoders = recipe.task.freeze, encoders_of(model)
    if frozen == "none":
        return
    if not recipe.task.start_from:
        raise RecipeError(f"task.freeze is {frozen!r}; name the run to begin with in task.start_from")
    if frozen not in ("both", *encoders):
        raise RecipeError(f"task.freeze is {frozen!r}; this model's encoders are {', '.join(encoders) or 'none'}")
    for name in encoders if frozen == "both" else [frozen]:
        for key, parameter in encoders[name].named_parameters():
            parameter.requires_grad = key.startswith(_OF_THE_TASK)


def take_encoders(model: Module, data: DataSpec, recipe: Recipe) -> None:
    """Give the encoders of `model` the weights of those that the run task.start_from has too.

    Raises
    ------
    RunError, CheckpointError
        If there is no such run, or it has no encoder in common with the model, of the same form and vocabulary, or
        none of those that shall be frozen.
    """
    run, frozen = recipe.task.start_from, recipe.task.freeze
    trained = load_run(run)
    own, theirs = encoders_of(model), encoders_of(trained.model)
    if trained.data.words != data.words:
        theirs.pop("text", None)
    common = own.keys() & theirs.keys()
    if not common:
        raise RunError(
            f"task.start_from: {run} has no encoder of images, or of texts of this vocabulary, to begin with"
        )
    if frozen in ("vision", "text") and frozen not in common:
        raise RunError(f"task.freeze is {frozen!r}; {run} has no such encoder, or one of another vocabulary")
    for name in common:
        state = theirs[name].state_dict()
        taken = {key: value for key, value in state.items() if not key.startswith(_OF_THE_TASK)}
        wanted = {key for key in own[name].state_dict() if not key.startswith(_OF_THE_TASK)}
        if wanted != taken.keys():
            key = min(wanted ^ taken.keys())
            raise RunError(f"task.start_from: the {name} encoder of {run} is of another form: only one has {key}")
        try:
            own[name].load_state_dict(taken, strict=False)
        except ValueError as error:
            raise RunError(f"task.start_from: the {name} encoder of {run} is of another form: {error}") from error


# Making a folder ----------------------------------------------------------------------------------------------------


def new_run(recipe: Recipe, name: str, out: Path | None = None) -> Path:
    """Make the folder of a new run, with its recipe.toml in it.

    Parameters
    ----------
    recipe : Recipe
    name : str
        The folder is ``runs/<name>``, or the first of ``runs/<name>-2``, ``-3`` ... that nothing has.
    out : path, optional
        The folder instead; it must not exist yet, or be empty.

    Raises
    ------
    RunError
        If `out` has something in it, or the folder cannot be made.
    """
    folder = out or Path("runs") / name
    was_there = out is not None and out.exists()
    try:
        folder = _first_free(folder) if out is None else _empty(out)
        (folder / RECIPE).touch(exist_ok=False)  # of two processes, one is first
    except FileExistsError as error:
        raise RunError(f"{error.filename} exists already; give a folder that does not") from error
    except OSError as error:
        raise RunError(f"{error.filename or folder} cannot be made: {error.strerror}") from error
    try:
        atomic_write(folder / RECIPE, recipe.to_toml().encode())
    except OSError as error:
        with suppress(OSError):
            (folder / RECIPE).unlink()
            if not was_there:
                folder.rmdir()
        raise RunError(f"{folder / RECIPE} cannot be written: {error.strerror}") from error
    return folder


def _first_free(folder: Path) -> Path:
    folder.parent.mkdir(exist_ok=True)
    for name in chain([folder.name], (f"{folder.name}-{number}" for number in count(2))):
        with suppress(FileExistsError):  # also if another process makes it at this moment
            folder.with_name(name).mkdir()
            return folder.with_name(name)
    raise AssertionError("there is always another number")


def _empty(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty; give a folder that does not exist, or --resume to go on with a run")
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Within this block no other process can claim the run in `folder`; RunError if one has it.

    The system gives the claim back if this process dies. Where it has no such claims (Windows, some network file
    systems), nothing is claimed.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{folder} is being trained by another process; wait for it, or stop it first") from error
        except OSError:  # this file system has no claims
            pass
        yield
    finally:
        os.close(descriptor)


# Reading a run back -------------------------------------------------------------------------------------------------


class TrainedModel(NamedTuple):
    """A recipe, the model that was trained by it (in eval mode), and what that model knows of its data."""

    recipe: Recipe
    model: Module
    data: DataSpec


def load_run(run: str | Path) -> TrainedModel:
    """Read the model of a run folder, or of a recipe whose trained weights come with the package ("digits").

    Raises
    ------
    RunError
        If there is no such run.
    RecipeError, CheckpointError
        If its files cannot be read, or do not belong together.
    """
    if Path(run).exists():
        recipe, weights = read_recipe(Path(run)), Path(run) / MODEL
    elif (weights := SHIPPED / f"{run}.safetensors").is_file():
        recipe = load_recipe(str(run))
    else:
        raise RunError(f"there is no run {str(run)!r}{_known(SHIPPED.glob('*.safetensors'))}")
    data = _data_of(Path(run), recipe)
    model = build_model(recipe, data)
    try:
        model.load_state_dict(load(weights))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{weights} does not belong to the recipe of {run}: {error.args[0]}") from error
    return TrainedModel(recipe, model.eval().to(default_device()), data)


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe of a run folder."""
    if not (folder / RECIPE).is_file():
        raise RunError(f"{folder} is no run folder: it has no {RECIPE}{_known()}")
    return load_recipe(folder / RECIPE)


def _data_of(folder: Path, recipe: Recipe) -> DataSpec:
    """What the checkpoint says of the data; weights that come alone are asked for theirs in the data set itself."""
    if not (folder / CHECKPOINT).is_file():
        return DataSpec.of(load_data(recipe, "test"))
    state = load(folder / CHECKPOINT)
    try:
        require_same_recipe(folder / CHECKPOINT, state, recipe, ("model", "data.name", "data.image_size", "task"))
        return DataSpec.from_state(state["data"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / CHECKPOINT} is not the checkpoint of a run") from error


def require_same_recipe(path: Path, state: Mapping[str, Any], recipe: Recipe, deciding: tuple[str, ...]) -> None:
    """Raise CheckpointError if the checkpoint `state`, read from `path`, is of another recipe than `recipe`.

    Only the sections and keys in `deciding` ("model", "data.name") are compared.
    """
    before, now = tomllib.loads(state["recipe"]), dataclasses.asdict(recipe)
    keys = [(s, key) for s in before for key in before[s] if s in deciding or f"{s}.{key}" in deciding]
    changed = [f"{s}.{key}" for s, key in keys if now[s].get(key) != before[s][key]]
    if changed:
        raise CheckpointError(
            f"{path} was written with another {', '.join(changed)} than {RECIPE} now says; "
            "put that back, or start a new run"
        )


def _known(shipped: Iterable[Path] = ()) -> str:
    """The end of an error: the run folders there are, and the weights that come with the package if they will do."""
    names = sorted(str(path.parent) for path in Path("runs").glob(f"*/{RECIPE}")) + sorted(p.stem for p in shipped)
    if names:
        return f"; there is {', '.join(names)}"
    return "; `tinyvit train` makes one"
