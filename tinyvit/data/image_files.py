"""The image files of a folder: which are read, and a warning that names those that are left out.

A folder is searched with all folders in it, and links to folders are followed. Hidden entries, whose names begin with a
dot, are passed over: systems and editors keep files of their own there.
"""

import os
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, log

IMAGE_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf"),
    *(".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
_NAMED = 5  # entries that a message lists before it counts the others


class LeftOut(NamedTuple):
    """A file that is not used, and the reason."""

    path: Path
    reason: str


class FoundFiles(NamedTuple):
    """The files of a folder that are named as images, in the order of their paths, and all others."""

    images: list[Path]
    left_out: list[LeftOut]


def find_images(folder: Path) -> FoundFiles:
    """Return the image files in `folder` and in all folders below it. Raises DataError if it cannot be listed."""
    found = FoundFiles([], [])
    try:
        _search(folder, (), found)
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be listed ({error.strerror}): check its permissions"
        ) from None
    return found


def _search(folder: Path, above: tuple[str, ...], found: FoundFiles) -> None:
    """Add the files below `folder` to `found`; `above` are the real paths of the folders that led here."""
    real = os.path.realpath(folder)
    if real in above:
        found.left_out.append(LeftOut(folder, "a link to a folder that contains it"))
        return
    for entry in sorted(folder.iterdir()):
        is_image = entry.suffix.lower() in IMAGE_SUFFIXES
        if entry.name.startswith("."):
            if is_image and not entry.name.startswith("._"):  # the Finder of macOS writes "._" files
                found.left_out.append(LeftOut(entry, "hidden"))
        elif entry.is_dir():
            _search(entry, (*above, real), found)
        elif not is_image:
            found.left_out.append(LeftOut(entry, "not named as an image"))
        elif not entry.is_file():
            found.left_out.append(LeftOut(entry, "not a file" if entry.exists() else "a broken link"))
        else:
            found.images.append(entry)


def read_files(
    files: Sequence[Path], read: Callable[[Path], NDArray[np.uint8]]
) -> tuple[list[Path], list[NDArray[np.uint8]], list[LeftOut]]:
    """Read files in parallel: return those that `read` can read, their pixels, and those where it raises DataError."""

    def attempt(file: Path) -> NDArray[np.uint8] | LeftOut:
        try:
            return read(file)
        except DataError as error:
            return LeftOut(file, str(error).removeprefix(f"{file} "))

    with ThreadPoolExecutor() as pool:
        results = list(zip(files, pool.map(attempt, files), strict=True))
    good = [(file, result) for file, result in results if not isinstance(result, LeftOut)]
    left_out = [result for _, result in results if isinstance(result, LeftOut)]
    return [file for file, _ in good], [pixels for _, pixels in good], left_out


def warn_of_left_out(folder: Path, left_out: Sequence[LeftOut], count: int) -> None:
    """Log a warning that counts and names the files of `folder` that are not among the `count` images in use."""
    if left_out:
        those = "file is" if len(left_out) == 1 else "files are"
        log.warning(
            "%s: %d %s left out, beside %s images: %s",
            folder,
            len(left_out),
            those,
            f"{count:,}",
            listed_files(left_out),
        )


def listed_files(left_out: Sequence[LeftOut]) -> str:
    """Return the first of these files with their reasons, and the number of the others."""
    return listed([f"{path} ({reason})" for path, reason in left_out])


def listed(names: Sequence[str], most: int = _NAMED) -> str:
    """Return the first names separated by commas, and the number of the others."""
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + others


def class_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of classes in `folder` by their names, in alphabetical order.

    A name is taken in Unicode's composed form (NFC): systems differ in the form in which they write a letter such as é.
    Raises DataError if there are none, or if two names are the same text.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; the layout is PATH/train/<class>/<file>, PATH/test/...")
    folders: dict[str, Path] = {}
    for entry in filter(Path.is_dir, _visible(folder)):
        name = same_form(entry.name)
        if name in folders:
            raise DataError(f"{folder} has the class {name!r} twice, in two forms of Unicode; merge the two folders")
        folders[name] = entry
    if not folders:
        raise DataError(f"{folder} holds no folders; each class must be a folder of images in it")
    return dict(sorted(folders.items()))


def same_form(name: str) -> str:
    """Return a name in Unicode's composed form, so that names that look the same are equal."""
    return unicodedata.normalize("NFC", name)


def files_beside(folder: Path) -> list[LeftOut]:
    """Return the image files that lie in `folder` itself, where only folders of classes belong."""
    files = (entry for entry in _visible(folder) if entry.is_file())
    return [LeftOut(file, "in no class") for file in files if file.suffix.lower() in IMAGE_SUFFIXES]


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise _cannot_be_listed(folder, error) from error


def _cannot_be_listed(folder: Path, error: OSError) -> DataError:
    return DataError(f"{error.filename or folder} cannot be listed ({error.strerror}): check its permissions")
