"""The settings that a run chose by the user's own data, in two lines: in words, and as keys to change them."""

import shlex
from pathlib import Path

from ..backend.words import counted
from ..data.image_files import listed
from ..recipe import Recipe
from ..tasks import DataSpec
from ..tasks.options import OWN

_OF_IMAGES = ("image_size", "channels", "statistics", "patch_size")
_OF_SOUNDS = ("sample_rate", "seconds", "image_size", "patch_size")
_OF_ALL = ("epochs", "batch_size", "lr", "validation", "test", "split_seed")


def choices(recipe: Recipe, data: DataSpec, folder: Path) -> list[str]:
    """Return two lines about the settings of a run on data of the user's own; none for other data.

    `data` is what the training data turned out to be, and `folder` that of the run.
    """
    if not recipe.data.name.startswith(OWN):
        return []
    keys: dict[str, object] = {name: getattr(recipe.data, name, None) for name in (*_OF_IMAGES, *_OF_SOUNDS, *_OF_ALL)}
    keys |= {"patch_size": recipe.model.patch_size, "epochs": recipe.train.epochs, "lr": recipe.train.lr}
    facts = [f"{counted(len(data.classes), 'classes')} ({listed(data.classes, 10)})"] if data.classes else []
    facts += [f"a vocabulary of {counted(len(data.words), 'words')}"] if data.words else []
    shown: tuple[str, ...] = ()
    if data.shape:
        channels, height, width = data.shape[-3:]
        keys |= {"image_size": height, "channels": channels}
        what, shown = f"images of {width} x {height} pixels in {'grey' if channels == 1 else 'colour'}", _OF_IMAGES
        if data.sound:
            rate, seconds, _ = data.sound
            keys |= {"sample_rate": rate, "seconds": seconds}
            what, shown = f"spectrograms of {seconds:g} s with {width} bands, at {rate:,} samples a second", _OF_SOUNDS
        mean, std = (" ".join(f"{number:.2f}" for number in numbers) for numbers in (data.mean, data.std))
        facts += [f"{what}, normalized by mean {mean} and deviation {std}"]
        facts += [f"patches of {recipe.model.patch_size} pixels"]
    facts += [counted(recipe.train.epochs, "epochs"), f"batches of {recipe.data.batch_size}"]
    facts += [f"{_amount(recipe.data.test)} held out for the test, and {_amount(recipe.data.validation)} of the rest "
              "for validation, unless the data says what is"]  # fmt: skip
    settings = " ".join(f"--set {name}={_value(keys[name])}" for name in (*shown, *_OF_ALL))
    explained = f"tinyvit recipe {shlex.quote(str(folder / 'recipe.toml'))}"
    return [f"chosen: {'; '.join(facts)}", f"to change it: {settings} (all keys: {explained})"]


def _amount(number: float) -> str:
    return f"{100 * number:g} %" if number < 1 else f"{number:g}"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
