"""Recipes for the user's own images and texts: their size, patches, batches and epochs are chosen by what is there."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import recipe as recipes
from ..backend.files import missing, name_beside
from ..backend.words import did_you_mean
from ..data import ImageFolder, TextTable
from ..data.folders import HELD_OUT
from ..data.images import open_image
from ..data.own_texts import CAPTIONS, HELD_OUT_ROWS, QUESTIONS, TRANSLATIONS, columns_in
from ..data.sounds import has_sounds
from ..data.tables import TABLE_SUFFIXES, is_table
from ..errors import DataError, RecipeError
from ..recipe import About, Recipe, recipe_names
from ..tasks import TASKS
from ..tasks.options import OWN, SPECTROGRAM, TABLE, folder_options, sound_folder

FOLDER, SOUNDS = "folder", "audio"  # the recipes that are the bases for folders of images, of sounds
_LARGEST = 64  # the longest side in pixels that a recipe for a folder begins with
_TOKENS = 8  # the patches along it
_IMAGES = 60_000  # training images that such a run sees over all its epochs, of which there are 10 to 100
_ROWS = 120_000  # rows of texts, likewise
_STEPS = 12  # in an epoch, at least, if batches can be as small as _SMALLEST
_SMALLEST = 16  # rows
_OF_TEXTS = {QUESTIONS: "vqa", CAPTIONS: "caption", TRANSLATIONS: "translate"}  # the recipes for tables of texts
_LOOKED_AT = 300  # files whose size is read to choose one


def chosen_recipe(name: str | None, images: str | None, assignments: Sequence[str]) -> tuple[Recipe, str]:
    """Return the recipe that a user asks for, with its changes, and the name of its run.

    Parameters
    ----------
    name : str, optional
        A recipe, a .toml file, a folder or table of images, see `tinyvit.data.folders`, or a table of texts, see
        `tinyvit.data.own_texts`; by default "digits".
    images : str, optional
        A folder or table of the user's own, to train on by the recipe `name`, or by one that is made for it.
    assignments : sequence of str
        Changes such as "train.lr=1e-3".

    Raises
    ------
    RecipeError, DataError
        If there is no such recipe or folder, or if they do not fit together.
    """
    is_recipe = name in recipe_names() or Path(name or "").suffix == ".toml"
    if name and images is None and not is_recipe and (Path(name).is_dir() or _is_table(name)):
        name, images = None, name
    if images is None:
        if name == FOLDER:
            raise RecipeError("the recipe 'folder' is for images of your own: tinyvit train PATH, or --images PATH")
        if name and not is_recipe and _means_path(name):
            raise RecipeError(_no_path(name))
        recipe = recipes.load_recipe("digits" if name is None else name)
        changed = _with_a_share(recipe, recipe.override(assignments), assignments)
        own = Path(name or "digits").stem
        if changed.data.name != recipe.data.name and changed.about == recipe.about and recipe.data.name:
            return _on_other_data(changed, own)
        if not changed.is_like(recipe) and changed.about.accuracy == recipe.about.accuracy:
            about = dataclasses.replace(changed.about, accuracy=0.0)  # the stated one is that of another run
            changed = dataclasses.replace(changed, about=about)
        return changed, own
    if (Path(images) / "recipe.toml").is_file():
        raise RecipeError(f"{images} is a run folder, not a folder of images; --resume {images} continues its run")
    if (columns := columns_in(images)) is not None:
        return _on_table(name, images, columns, assignments), Path(images).resolve().stem
    sounds = has_sounds(images)
    base = recipes.load_recipe(name or (SOUNDS if sounds else FOLDER))
    if base.task.kind not in ("classify", "masked"):
        hint = f"; a table needs the columns {', '.join(needs)}" if (needs := TASKS[base.task.kind].columns) else ""
        raise RecipeError(f"{images} is a data set of images and classes, not for {base.task.kind!r} runs{hint}")
    if sounds:
        return _of_sounds(base, Path(images), assignments), Path(images).resolve().stem
    recipe = _with_a_share(base, base.override([f"data.name=folder:{images}", *assignments]), assignments)
    return _fitted(recipe, Path(images), _given(assignments), name in (None, FOLDER)), Path(images).resolve().stem


def _given(assignments: Sequence[str]) -> set[str]:
    """Return the keys that assignments change, without their sections."""
    return {assignment.partition("=")[0].strip().rpartition(".")[2] for assignment in assignments}


def _with_a_share(base: Recipe, recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """Return `recipe` with a share held out instead of the number that `base` holds out of other data than the user's.

    A number that the assignments state is kept, and so is that of a recipe for data of the user's own.
    """
    is_of_others = base.data.validation >= 1 and not base.data.name.startswith(OWN)
    if not is_of_others or not recipe.data.name.startswith(OWN) or "validation" in _given(assignments):
        return recipe
    share = HELD_OUT_ROWS if recipe.data.name.startswith(TABLE) else HELD_OUT
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, validation=share))


def _batch_size(count: int, most: int) -> int:
    """Return a size of batches, of which an epoch has `_STEPS` or more unless they would be too small."""
    return int(np.clip(count // _STEPS, min(_SMALLEST, most), most))


def _epochs(total: int, count: int) -> int:
    """Return how many epochs of `count` samples come near `total` samples: from 10 to 100."""
    return int(np.clip(total // count, 10, 100))


def _of_sounds(base: Recipe, path: Path, assignments: Sequence[str]) -> Recipe:
    """Return a recipe for a folder of sounds; keys that are not given are chosen by its files."""
    recipe, given = base.override([f"data.name=sounds:{path}", *assignments]), _given(assignments)
    if "image_size" not in given:
        recipe = recipe.override([f"data.image_size={SPECTROGRAM}"])
    if "validation" not in given:
        recipe = recipe.override([f"data.validation={HELD_OUT}"])
    folder = sound_folder(recipe)
    files = folder.parts["train"].files
    data = dataclasses.replace(recipe.data, seconds=folder.seconds)
    train = recipe.train
    if "batch_size" not in given:
        size = _batch_size(len(files), data.batch_size)
        data = dataclasses.replace(data, batch_size=size)
    if "epochs" not in given:
        train = dataclasses.replace(train, epochs=_epochs(_IMAGES, len(files)))
    if "keep" not in given and data.validation:
        train = dataclasses.replace(train, keep="best")
    title = f"Sounds in {path.resolve().name}: {', '.join(folder.classes)}"[:200]
    about = About(title=title, command=f"tinyvit train {shlex.quote(str(path))}")
    return dataclasses.replace(recipe, about=about, data=data, train=train)


def _on_table(name: str | None, path: str, columns: tuple[str, ...], assignments: Sequence[str]) -> Recipe:
    """Return a recipe for a table of texts; what is not given is chosen by its rows and images."""
    base, given = recipes.load_recipe(name or _OF_TEXTS[columns]), _given(assignments)
    kind = base.task.kind
    if TASKS[kind].columns != columns:
        fitting = [name for name in recipe_names() if TASKS[recipes.load_recipe(name).task.kind].columns == columns]
        raise RecipeError(
            f"{path} has the columns {', '.join(columns)}, from which a {kind!r} run cannot learn; recipes for it: "
            f"{', '.join(fitting)}"
        )
    recipe = base.override([f"data.name=csv:{path}", *assignments])
    data, model, train = recipe.data, recipe.model, recipe.train
    if "flip" not in given:  # texts often tell left from right
        data = dataclasses.replace(data, flip=False)
    if "validation" not in given:
        data = dataclasses.replace(data, validation=HELD_OUT_ROWS)
    rows = TextTable(path, columns, folder_options(dataclasses.replace(recipe, data=data))).parts["train"]
    if not {"image_size", "patch_size"} & given and "image" in columns:
        files = list(dict.fromkeys(row.file for row in rows if row.file is not None))
        data = dataclasses.replace(data, image_size=_rounded(min(_sides(files), _LARGEST)))
        model = dataclasses.replace(model, patch_size=_patch(data.image_size))
    if "batch_size" not in given:
        size = _batch_size(len(rows), data.batch_size)
        if "lr" not in given:
            train = dataclasses.replace(train, lr=float(f"{train.lr * (size / data.batch_size) ** 0.5:.2g}"))
        data = dataclasses.replace(data, batch_size=size)
    if "epochs" not in given:
        train = dataclasses.replace(train, epochs=_epochs(_ROWS, len(rows)))
    about = About(
        title=f"{', '.join(columns)} of {Path(path).name}"[:200],
        command=" ".join(["tinyvit train", *([name, "--data"] if name else []), shlex.quote(path)]),
    )
    return dataclasses.replace(recipe, about=about, data=data, model=model, train=train)


def _on_other_data(recipe: Recipe, name: str) -> tuple[Recipe, str]:
    """Return a recipe whose data was changed, without what it says about the run on its own data, and a name for it."""
    kind, colon, path = recipe.data.name.partition(":")
    data = Path(path).resolve().name if colon else kind
    about = About(title=f"{data}, by the recipe {name}"[:200])
    plain = "".join(character if character.isalnum() or character in "-_" else "-" for character in data)[:60]
    return dataclasses.replace(recipe, about=about), f"{name}-{plain.strip('-') or 'data'}"


def _means_path(name: str) -> bool:
    """Return whether an unknown name is that of a path: by its form, or because it is like one and like no recipe."""
    is_like_one = bool(name_beside(name)) and not did_you_mean(name, recipe_names())
    return bool(Path(name).suffix) or Path(name).name != name or is_like_one


def _no_path(name: str) -> str:
    """Return what is wrong with a path that is given instead of a recipe."""
    wrong = f"{name} is a file of another kind" if Path(name).exists() else missing(name, "file or folder")
    return (
        f"{wrong}: give a folder of images or sounds, a table ({' or '.join(TABLE_SUFFIXES)}), the path of a .toml "
        "file, or the name of a recipe, which tinyvit train --help lists"
    )


def _is_table(name: str) -> bool:
    return is_table(name) and Path(name).is_file()


def _fitted(recipe: Recipe, path: Path, given: set[str], is_made: bool) -> Recipe:
    """Return a recipe with the keys that were not given chosen by the images; `is_made` says for which recipe."""
    folder = ImageFolder(path, folder_options(recipe))
    files = folder.parts["train"].files
    size, patch = _sides(files), recipe.model.patch_size
    data, model, train = recipe.data, recipe.model, recipe.train
    if "image_size" not in given and (is_made or not data.image_size):
        size = _rounded(min(size, _LARGEST)) if is_made and "patch_size" not in given else max(1, size // patch) * patch
        data = dataclasses.replace(data, image_size=size if is_made else min(size, _TOKENS * patch))
    if is_made and "patch_size" not in given:
        model = dataclasses.replace(model, patch_size=_patch(data.image_size))
    if "channels" not in given:
        data = dataclasses.replace(data, channels=folder.channels)
    if is_made and "epochs" not in given:
        train = dataclasses.replace(train, epochs=_epochs(_IMAGES, len(files)))
    command = f"tinyvit train {shlex.quote(str(path))}"
    about = About(title=f"Images in {path.resolve().name}: {', '.join(folder.classes)}"[:200], command=command)
    return dataclasses.replace(recipe, about=about, data=data, model=model, train=train)


def _sides(files: Sequence[Path]) -> int:
    """Return the median of the shorter sides of some images, in pixels. Raises DataError if none can be read."""
    sides = []
    for file in files[:: max(1, len(files) // _LOOKED_AT)]:
        try:
            with open_image(file) as image:
                sides.append(min(image.size))
        except DataError:  # it is counted and named when the images are read
            continue
    if not sides:
        raise DataError(f"none of {len(files)} images can be read{f', such as {files[0]}' if files else ''}")
    return int(np.median(sides))


def _rounded(size: int) -> int:
    """Return a side that patches of a usual size divide: `size`, or the next smaller multiple of 8 or 4."""
    if size in (28, 20, 12):
        return size
    return max(8, size - size % (8 if size >= 16 else 4))


def _patch(size: int) -> int:
    """Return the side of patches that divide an image into about 8 x 8, at least of 2 pixels."""
    sides = [side for side in range(2, size + 1) if size % side == 0] or [size]
    return min(sides, key=lambda side: abs(size / side - _TOKENS))
