"""What a recipe says about images: how they are read, normalized and changed at random."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..data import (
    Augment,
    Dataset,
    FolderOptions,
    Preprocessing,
    Resize,
    SoundFolder,
    SoundOptions,
    TextDataset,
    TextTable,
    image_folder,
)
from ..errors import DataError, RecipeError
from ..recipe import Recipe

DEFAULTS = {  # of the keys of recipes that have one
    f"{section.name}.{key.name}": key.default
    for section in dataclasses.fields(Recipe)
    for key in dataclasses.fields(section.type)  # type: ignore[arg-type]
}
OWN_IMAGES = ("folder:", "sounds:")  # how the names of images and sounds of one's own begin
TABLE = "csv:"  # the same of texts
OWN = (*OWN_IMAGES, TABLE)
SPECTROGRAM = 64  # bands and columns, unless the recipe says how many
OF_SOUNDS = ("sample_rate", "seconds")
OF_FOLDERS = ("test", "channels", "statistics", "broken", "cache_mb")  # keys for images and texts of one's own only


def folder_options(recipe: Recipe) -> FolderOptions:
    """Return how a recipe reads a folder of images. Raises RecipeError."""
    data = recipe.data
    if data.channels == 2:
        raise RecipeError("data.channels is 2; images have 1 (grey) or 3 (colour), and 0 takes what they have")
    return FolderOptions(
        **{key: getattr(data, key) for key in ("image_size", "validation", *OF_FOLDERS)},
        seed=data.split_seed,
        resize=resize_of(data.resize),
    )


def load_images(recipe: Recipe, split: str, like: Any = None) -> Dataset:
    """Load one split of a folder of images or sounds, see `Task.load`. Raises RecipeError or DataError."""
    if recipe.data.name.startswith(OWN_IMAGES[1]):
        folder = sound_folder(recipe)
        if split not in folder.parts:
            raise DataError(f"{recipe.data.name} has no {split} split: its options hold nothing out for it")
        return folder.load(split, like)
    return image_folder(recipe.data.name.removeprefix("folder:"), split, options=folder_options(recipe), like=like)


def sound_folder(recipe: Recipe) -> SoundFolder:
    """Return the folder of sounds that a recipe names. Raises RecipeError or DataError."""
    data = recipe.data
    for key in ("resize", "channels"):
        if value := getattr(data, key):
            raise RecipeError(f"data.{key} is {value!r}, which is for images, not for sounds; leave it out")
    own = {"image_size": data.image_size or SPECTROGRAM, "sample_rate": data.sample_rate, "seconds": data.seconds}
    options = dataclasses.asdict(folder_options(recipe)) | own | {"resize": None}
    return SoundFolder(data.name.removeprefix(OWN_IMAGES[1]), SoundOptions(**options))


def load_table(
    recipe: Recipe, columns: Sequence[str], split: str, like: Any = None, pairs: bool = False
) -> TextDataset:
    """Load one split of a table of texts with such columns, see `Task.load`. Raises RecipeError or DataError."""
    if not columns:
        raise RecipeError(
            f"data.name is {recipe.data.name!r}, a table of texts, which a {recipe.task.kind!r} run does not learn "
            "from; a table with the columns file and label is folder:PATH"
        )
    unused = ("normalize", "resize") if "image" in columns else ("normalize", "resize", "image_size", *OF_FOLDERS[1:])
    for key in unused:
        if (value := getattr(recipe.data, key)) != DEFAULTS[f"data.{key}"]:
            raise RecipeError(f"data.{key} is {value!r}, which {recipe.data.name} does not use; leave it out")
    table = TextTable(recipe.data.name.removeprefix(TABLE), columns, folder_options(recipe))
    return table.load(split, like, pairs)


def augmentation_of(recipe: Recipe) -> Augment:
    """Return the changes of training images that a recipe asks for."""
    return Augment(**{key.name: getattr(recipe.data, key.name) for key in dataclasses.fields(Augment)})


def resize_of(text: str) -> Resize | None:
    """Read the key data.resize, such as "bicubic 0.9 center"; None if it is empty. Raises RecipeError."""
    if not text:
        return None
    try:
        interpolation, share, mode = text.split()
        return Resize(interpolation, float(share), mode)
    except (ValueError, DataError) as error:
        raise RecipeError(f"data.resize is {text!r}; it must be like 'bicubic 0.9 center' ({error})") from error


def statistics_of(text: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read the key data.normalize, "MEAN ... / STD ...", a number for each of `channels`. Raises RecipeError."""
    try:
        mean, std = (tuple(map(float, part.split())) for part in text.split("/"))
        Preprocessing(mean, std, Resize())
        if len(mean) != channels:
            raise ValueError(f"the images have {channels} channels")
    except (ValueError, DataError) as error:
        raise RecipeError(
            f"data.normalize is {text!r}; it must be the means of {channels} channels, a slash, and their standard "
            f"deviations ({error})"
        ) from error
    return mean, std
