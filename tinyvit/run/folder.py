"""Run folders: what they hold, how a new one is made and written, and how a trained model is read back.

A run folder holds recipe.toml (every key), metrics.jsonl (a line for each epoch), model.safetensors (the weights to
use), checkpoint.safetensors (all that `tinyvit train --resume` needs) and curves.png.
"""

import dataclasses
import os
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backend import current_group, default_device
from ..backend.words import did_you_mean
from ..checkpoint import atomic_write, leftovers, load, require_finite, save
from ..data import Dataset, hold_out
from ..data.image_files import listed, same_form
from ..errors import CheckpointError, DataError, RecipeError, TinyvitError, TrainingFailed, log
from ..functional.tensors import no_draws
from ..interop.describe import default_preprocessing
from ..models import ViT
from ..nn import Module
from ..recipe import Recipe, load_recipe
from ..tasks import DataSpec, recipe_error, task_of
from ..tasks.options import OWN
from ..tasks.spec import AnyDataset
from .moved import found_again, require_data
from .predict import classify
from .pretrained import NAME as PRETRAINED
from .pretrained import is_pretrained, load_pretrained
from .shipped import read_shipped, shipped_names
from .summary import model_html

RECIPE, METRICS, CURVES = "recipe.toml", "metrics.jsonl", "curves.png"
MODEL, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"


class RunError(TinyvitError):
    """A run folder that cannot be made, found or resumed."""


# The data and the model of a recipe ---------------------------------------------------------------------------------


class Splits(NamedTuple):
    """The data of a run: to train on, to choose by, and to measure once; `validation` may be None."""

    train: AnyDataset
    validation: AnyDataset | None
    test: AnyDataset


def load_splits(recipe: Recipe, in_order: bool = False) -> Splits:
    """Load all splits of the data that `recipe` names.

    The validation split is cut from the train split. What is left is reduced to a sample of `data.limit`, which is
    random, by the seed of the recipe, and has some of every class. With `in_order` it is the first samples, as in runs
    of earlier versions.
    """
    task, held = task_of(recipe), None
    train = task.load("train")
    assert train is not None
    amount, limit = recipe.data.validation, recipe.data.limit
    try:
        if amount and (held := task.load("validation", train)) is None:
            train, held = hold_out(train, amount, recipe.data.split_seed)
    except DataError as error:
        raise RecipeError(f"data.validation is {amount:g}: {error}") from error
    try:
        if limit:
            train = train.first(limit) if in_order else train.sample(limit, recipe.train.seed)
    except DataError as error:
        raise RecipeError(f"data.limit is {limit}: {error}") from error
    test = task.load("test", train)
    assert test is not None
    return Splits(train, held, test)


def load_data(recipe: Recipe, split: str) -> AnyDataset:
    """Load one split ("train", "validation", "test") of the data that `recipe` names, see `load_splits`."""
    if split == "test":
        found = task_of(recipe).load("test")
        assert found is not None
        return found
    found = getattr(load_splits(recipe), split)
    if found is None:
        raise DataError(f"data.validation is 0, so {recipe.data.name} has no validation split; choose test")
    return found


def load_test_data(trained: "TrainedModel") -> AnyDataset:
    """Load the test split of the data that a model was trained on, with the classes in the order of the model's.

    Raises DataError if the classes, the size of the images or the words are not those that the model has learnt.
    """
    name = trained.recipe.data.name
    if name == PRETRAINED:
        raise DataError("this is a pretrained model without a data set: name an image, or train a run on data of yours")
    require_data(trained.recipe)
    dataset = task_of(trained.recipe).load("test", trained.data)
    assert dataset is not None
    found = DataSpec.of(dataset)
    learnt = [same_form(name) for name in trained.data.classes]
    if sorted(learnt) == sorted(found.classes) and isinstance(dataset, Dataset):
        labels = np.array([learnt.index(name) for name in found.classes])[dataset.labels]
        dataset = dataclasses.replace(dataset, labels=labels, classes=trained.data.classes)
    if changes := trained.data.differences(DataSpec.of(dataset)):
        raise DataError(
            f"{name} is not what this model was trained on: {'; '.join(changes)}; put that back, or train again"
        )
    return dataclasses.replace(dataset, mean=trained.data.mean, std=trained.data.std)


def build_model(recipe: Recipe, data: DataSpec) -> Module:
    """Make the model of `recipe` for such data, with new weights. Raises RecipeError if its keys do not fit."""
    try:
        return task_of(recipe).build(data)
    except ValueError as error:
        raise recipe_error(recipe.model, error) from error


# Making a folder ----------------------------------------------------------------------------------------------------


def new_run(recipe: Recipe, name: str, out: Path | None = None) -> Path:
    """Make the folder of a new run, with its recipe.toml in it.

    Parameters
    ----------
    recipe : Recipe
    name : str
        The folder is ``runs/<name>``, or the first of ``runs/<name>-2``, ``-3`` ... that does not exist.
    out : path, optional
        The folder to use instead; it must be empty, or not exist.

    Raises
    ------
    RunError
        If `out` is not empty, or the folder cannot be made.
    """
    folder = out or Path("runs") / name
    was_there = out is not None and out.exists()
    try:
        folder = _first_free(folder) if out is None else _empty(out)
    except FileExistsError as error:
        raise RunError(f"{error.filename} exists already; give a folder that does not") from error
    except OSError as error:
        raise RunError(f"{error.filename or folder} cannot be made: {error.strerror}") from error
    try:
        atomic_write(folder / RECIPE, recipe.to_toml().encode(), new=True)  # one of two racing processes can create it
    except FileExistsError as error:
        raise RunError(f"{folder / RECIPE} exists already; give a folder that does not") from error
    except OSError as error:
        with suppress(OSError):
            if not was_there:
                folder.rmdir()
        raise RunError(f"{folder / RECIPE} cannot be written: {error.strerror}") from error
    return folder


def new_folder(name: str) -> Path:
    """Make the folder ``runs/<name>``, or the first of ``runs/<name>-2``, ``-3`` ... that does not exist.

    Raises RunError if it cannot be made.
    """
    try:
        return _first_free(Path("runs") / name)
    except OSError as error:
        raise RunError(f"{error.filename or Path('runs') / name} cannot be made: {error.strerror}") from error


def _first_free(folder: Path) -> Path:
    folder.parent.mkdir(exist_ok=True)
    for name in chain([folder.name], (f"{folder.name}-{number}" for number in count(2))):
        with suppress(FileExistsError):  # even if another process makes it at this moment
            folder.with_name(name).mkdir()
            return folder.with_name(name)
    raise AssertionError("there is always another number")


def _empty(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A run that was killed before it had a recipe has not begun.
    if folder.is_dir() and set(folder.iterdir()) - set(leftovers(folder)):
        raise RunError(f"{folder} is not empty; give a folder that does not exist, or --resume to continue a run")
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep all other processes from training the run in `folder` within this block; RunError if one is doing so.

    The system releases the claim if this process dies. On systems without such locks (Windows, some network file
    systems) this block does nothing.
    """
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{folder} is being trained by another process; wait for it, or stop it first") from error
        except OSError:  # this file system has no locks
            pass
        yield
    finally:
        os.close(descriptor)


# Writing into a folder ----------------------------------------------------------------------------------------------


def write_progress(folder: Path, state: Mapping[str, Any], weights: Mapping[str, Any], metrics: bytes) -> None:
    """Write the checkpoint `state`, then the weights to use and the metrics. Raises TrainingFailed.

    The checkpoint comes first: a run that is killed in between writes the other files again when it resumes.
    """
    write_file(folder / CHECKPOINT, lambda path: save(path, state))
    write_file(folder / MODEL, lambda path: save(path, weights))
    write_file(folder / METRICS, lambda path: atomic_write(path, metrics))


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(path)`; if that fails, say a disk is full, raise TrainingFailed with the way to resume the run."""
    try:
        write(path)
    except (CheckpointError, OSError) as error:
        message = error if isinstance(error, CheckpointError) else f"{path} cannot be written ({error.strerror})"
        raise TrainingFailed(f"{message}; then continue with: {resume_command(path.parent)}") from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing into a run folder, which must be claimed."""
    for path in leftovers(folder):
        with suppress(OSError):  # a finished run may lie on a read-only disk
            path.unlink()


def resume_command(folder: Path) -> str:
    """Return the command that resumes the run in `folder`, with as many processes as there are now."""
    command, size = f"tinyvit train --resume {shlex.quote(str(folder))}", current_group().size
    return command if size == 1 else f"mpiexec -n {size} {command} --distributed"


def is_complete(folder: Path, metrics: bytes) -> bool:
    """Return whether `folder` has every file of a run with these metrics; a run killed while it wrote lacks some."""
    files = [folder / name for name in (METRICS, MODEL, CURVES)]
    return all(file.is_file() for file in files) and files[0].read_bytes() == metrics


def is_legacy(folder: Path) -> bool:
    """Return whether the run in `folder` was begun by an earlier version, see `tinyvit.run.state.Training`."""
    state = load(folder / CHECKPOINT) if (folder / CHECKPOINT).is_file() else {"legacy": False}
    return state.get("legacy", True) is not False


# Reading a run back -------------------------------------------------------------------------------------------------


class TrainedModel(NamedTuple):
    """A recipe, the model that it trained (in eval mode), and the facts about the data that the model needs."""

    recipe: Recipe
    model: Module
    data: DataSpec

    def __repr__(self) -> str:
        weights = sum(parameter.size for parameter in self.model.parameters())
        about, kind = self.recipe.about.title or self.recipe.data.name, type(self.model).__name__
        return f"TrainedModel({about}: a {kind} with {weights:,} weights, {len(self.classes)} classes)"

    def _repr_html_(self) -> str:
        return model_html(self.recipe, self.model, self.data)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the model's logits."""
        return self.data.classes

    def predict(self, images: Any, top: int = 1) -> list[list[tuple[str, float]]]:
        """Return for each image its `top` most probable classes with their probabilities, the most probable first.

        `images` is an image or a sequence of images: paths of files, arrays (uint8, or floating from 0 to 1; (H, W),
        (H, W, C) or (C, H, W)) or Pillow images of any size. Raises DataError if one cannot be used, and RunError if
        the run does not classify images.
        """
        if self.recipe.task.kind != "classify":
            kind = self.recipe.task.kind
            raise RunError(
                f"predict needs a run that classifies images; this is a {kind!r} run: tinyvit.use has functions for "
                "other kinds, and tinyvit --help lists the commands"
            )
        return classify(self.model, self.data, images, top)


def load_run(run: str | Path) -> TrainedModel:
    """Load a trained model: of a run folder, of a recipe whose weights come with the package ("digits"), or pretrained.

    Pretrained weights are all that `models.from_pretrained` loads: folders and files of timm, Hugging Face and Google.
    A run or pretrained weights in the current folder take precedence over a recipe of the same name.

    Raises
    ------
    RunError
        If there is no such run.
    RecipeError, CheckpointError
        If its files cannot be read, or do not belong together.
    """
    if is_pretrained(run):
        recipe, pretrained, data = load_pretrained(run)
        return TrainedModel(recipe, pretrained.to(default_device()), data)
    name, folder = str(run), Path(run)
    if (folder / RECIPE).exists() or (folder.exists() and name not in shipped_names()):
        recipe, path = read_recipe(folder), folder / MODEL
        data, weights, recipe = _data_of(folder, recipe), load(path), found_again(recipe, folder)
    elif name in shipped_names():
        recipe = load_recipe(name)
        path, weights, data = read_shipped(name)
    else:
        raise RunError(f"there is no run {name!r}{_available(name, [*_run_folders(), *shipped_names()])}")
    with no_draws():  # all parameters are loaded
        model = build_model(recipe, data)
    try:
        with np.errstate(over="ignore"):  # values that float32 lacks become infinite, and are found below
            model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not belong to the recipe of {run}: {error.args[0]}") from error
    require_finite(path, model.state_dict())
    if isinstance(model, ViT):
        model.preprocessing = data.preprocessing or default_preprocessing(data.mean, data.std)
        model.labels = data.classes
    return TrainedModel(recipe, model.eval().to(default_device()), data)


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe of a run folder."""
    if not (folder / RECIPE).is_file():
        raise RunError(f"{folder} is not a run folder: it has no {RECIPE}{_available(str(folder), _run_folders())}")
    return load_recipe(folder / RECIPE, of_run=True)


def _data_of(folder: Path, recipe: Recipe) -> DataSpec:
    """Return the facts about the data from the checkpoint, or from the data set where there are only weights."""
    if not (folder / CHECKPOINT).is_file():
        recipe = found_again(recipe, folder)
        require_data(recipe)
        data = DataSpec.of(load_data(recipe, "train"))
        if recipe.data.name.startswith(OWN):
            what, names = ("classes", data.classes) if data.classes else ("words", data.words)
            log.warning(
                "%s has no %s; its %s are taken to be those that %s now has: %s",
                *(folder, CHECKPOINT, what, recipe.data.name, listed(names, 20)),
            )
        return data
    state = load(folder / CHECKPOINT)
    try:
        require_same_recipe(folder / CHECKPOINT, state, recipe, ("model", "data.name", "data.image_size", "task"))
        return DataSpec.from_state(state["data"])
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / CHECKPOINT} is not the checkpoint of a run") from error


def require_same_recipe(path: Path, state: Mapping[str, Any], recipe: Recipe, decisive: tuple[str, ...]) -> None:
    """Raise CheckpointError if the checkpoint `state`, read from `path`, is of another recipe than `recipe`.

    Only the sections and keys in `decisive` ("model", "data.name") are compared.
    """
    if changed := changed_keys(state, recipe, decisive):
        raise CheckpointError(
            f"{path} was written with another {', '.join(changed)} than {RECIPE} now says; "
            "put that back, or start a new run"
        )


def changed_keys(state: Mapping[str, Any], recipe: Recipe, decisive: tuple[str, ...]) -> list[str]:
    """Return which keys in `decisive` have another value in `recipe` than in the checkpoint `state`."""
    before, now = tomllib.loads(state["recipe"]), dataclasses.asdict(recipe)
    keys = [(s, key) for s in before for key in before[s] if s in decisive or f"{s}.{key}" in decisive]
    return [f"{s}.{key}" for s, key in keys if now[s].get(key) != before[s][key]]


def _run_folders() -> list[str]:
    return sorted(str(path.parent) for path in Path("runs").glob(f"*/{RECIPE}"))


def _available(name: str, known: Sequence[str]) -> str:
    """Return the end of an error message: the known run that is like `name`, and all that are known."""
    return did_you_mean(name, known) + (f"; available: {', '.join(known)}" if known else "; `tinyvit train` makes one")
