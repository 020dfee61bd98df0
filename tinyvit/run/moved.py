"""Where the data of a run lies, if the run has been moved, or is used from another folder than it was trained in.

A recipe names data of the user's own by a path. Unless it is absolute, it begins at the folder in which the run was
trained, which most often is the one that holds `runs`.
"""

import dataclasses
import shlex
from pathlib import Path

from ..errors import DataError
from ..recipe import Recipe

_KINDS = ("folder", "sounds", "csv", "coco")  # the beginnings of names that are followed by a path
_ABOVE = 3  # folders above that of the run in which its data is looked for


def with_data(recipe: Recipe, path: str | Path) -> Recipe:
    """Return a recipe whose data lies at another path. Raises DataError if its data is not the user's own."""
    if _path_of(recipe) is None:
        raise DataError(f"--data is {path}, but the run learned from {recipe.data.name}, not from data of your own")
    kind = recipe.data.name.partition(":")[0]
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, name=f"{kind}:{path}"))


def found_again(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe of the run in `folder`, with the path at which its data is found from the current folder.

    If there is nothing at the path as it is, it may begin at one of the three folders above that of the run.
    """
    above = _begin_of(recipe, folder)
    return recipe if above is None else with_data(recipe, above / str(_path_of(recipe)))


def require_data(recipe: Recipe, folder: Path | None = None) -> None:
    """Raise DataError, with the way out, if data of the user's own is not at its path.

    `folder` is that of a run to resume, whose recipe must stay as it is.
    """
    path = _path_of(recipe)
    if path is None or path.exists():
        return
    if folder is None:
        way = "run the command there, put the data back, or give its place: tinyvit evaluate RUN --data PATH"
    elif above := _begin_of(recipe, folder):
        way = f"resume it there: cd {shlex.quote(str(above))}"
    else:
        way = "resume it there, or put the data back"
    begin = "" if path.is_absolute() else ", which begins at the folder in which the run was trained"
    raise DataError(f"{path} does not exist: the run names its data by this path{begin}; {way}")


def _path_of(recipe: Recipe) -> Path | None:
    kind, colon, path = recipe.data.name.partition(":")
    return Path(path) if colon and kind in _KINDS else None


def _begin_of(recipe: Recipe, folder: Path) -> Path | None:
    """Return the folder above the run's at which the path of its data begins.

    It is None if the path leads to data as it is, and if no folder has any there.
    """
    path = _path_of(recipe)
    if path is None or path.is_absolute() or path.exists():
        return None
    return next((above for above in folder.resolve().parents[:_ABOVE] if (above / path).exists()), None)
