"""The image files of a folder: which are read, and a warning that names those that are left out.

A folder is searched with all folders in it, and links to folders are followed. Hidden entries, whose names begin with a
dot, are passed over: systems and editors keep files of their own there.
"""

import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backend.files import missing, open_file
from ..backend.threads import pool_of_threads
from ..backend.words import counted
from ..errors import DataError, log

# The suffixes that images usually have: a file that has one, but is no image, is one that is broken.
IMAGE_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf"),
    *(".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
NOT_AN_IMAGE = "not an image"  # the reason why most files are left out
_NAMED = 5  # entries that a message lists before it counts the others


# What becomes of a fault that training cannot pass over: training stops at it, a check notes it and goes on.
Refuse = Callable[[DataError], object]


def stop(fault: DataError) -> None:
    """Raise a fault of the user's data."""
    raise fault


class LeftOut(NamedTuple):
    """A file that is not used, and the reason."""

    path: Path
    reason: str


class FoundFiles(NamedTuple):
    """The files of a folder that are images (or sounds), in the order of their paths, and all others."""

    images: list[Path]
    left_out: list[LeftOut]


def find_images(folder: Path) -> FoundFiles:
    """Return the image files in `folder` and in all folders below it. Raises DataError if it cannot be listed."""
    return find_files(folder, _judged, IMAGE_SUFFIXES)


def _judged(path: Path) -> str:
    """Return the reason why a file is not used, or nothing."""
    if (kind := kind_of(path)) == "HEIC":
        return "HEIC, which Pillow does not read: save it as JPEG or PNG"
    return "" if kind or path.suffix.lower() in IMAGE_SUFFIXES else NOT_AN_IMAGE


def find_files(folder: Path, judged: Callable[[Path], str], suffixes: tuple[str, ...]) -> FoundFiles:
    """Return the files in `folder` and in all folders below it for which `judged` returns no reason to leave them out.

    Hidden files are named if they have one of the suffixes. Raises DataError if a folder cannot be listed.
    """
    found = FoundFiles([], [])
    try:
        _search(folder, (), found, judged, suffixes)
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be listed ({error.strerror}): check its permissions"
        ) from None
    return found


def _search(
    folder: Path, above: tuple[str, ...], found: FoundFiles, judged: Callable[[Path], str], suffixes: tuple[str, ...]
) -> None:
    """Add the files below `folder` to `found`; `above` are the real paths of the folders that led here."""
    real = os.path.realpath(folder)
    if real in above:
        found.left_out.append(LeftOut(folder, "a link to a folder that contains it"))
        return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            if entry.suffix.lower() in suffixes and not entry.name.startswith(
                "._"
            ):  # the Finder of macOS writes "._" files
                found.left_out.append(LeftOut(entry, "hidden"))
        elif entry.is_dir():
            _search(entry, (*above, real), found, judged, suffixes)
        elif not entry.is_file():
            found.left_out.append(LeftOut(entry, "not a file" if entry.exists() else "a broken link"))
        elif reason := judged(entry):
            found.left_out.append(LeftOut(entry, reason))
        else:
            found.images.append(entry)


_BEGINNINGS = {  # of files, by the names of their formats
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "JPEG2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"mif1"), "HEIC")


def kind_of(path: Path) -> str:
    """Return the format of an image file by its first bytes, whatever its name; empty if it is none that is known."""
    try:
        with open_file(path) as file:
            head = file.read(32)
    except OSError:
        return ""
    for kind, beginnings in _BEGINNINGS.items():
        if head.startswith(beginnings):
            return kind
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0" and head[15:18] == b"\0\0\0":
        return "BMP"
    if (
        head[:1] == b"P"
        and head[1:2] in b"123456"
        and head[2:3].isspace()
        and (head[3:4].isdigit() or head[3:4] == b"#")
    ):
        return "PPM"
    return ""


def or_left_out(read: Callable[[Path], NDArray[np.uint8]]) -> Callable[[Path], NDArray[np.uint8] | LeftOut]:
    """Return a function that does what `read` does, but returns the reason where that raises DataError."""

    def attempt(file: Path) -> NDArray[np.uint8] | LeftOut:
        try:
            return read(file)
        except DataError as error:
            return LeftOut(file, str(error).removeprefix(f"{file} "))

    return attempt


def read_files(
    files: Sequence[Path], read: Callable[[Path], NDArray[np.uint8]]
) -> tuple[list[Path], list[NDArray[np.uint8]], list[LeftOut]]:
    """Read files in parallel: return those that `read` can read, their pixels, and those where it raises DataError."""
    with pool_of_threads() as pool:
        results = list(zip(files, pool.map(or_left_out(read), files), strict=True))
    good = [(file, result) for file, result in results if not isinstance(result, LeftOut)]
    left_out = [result for _, result in results if isinstance(result, LeftOut)]
    return [file for file, _ in good], [pixels for _, pixels in good], left_out


def warn_of_left_out(
    folder: Path, left_out: Sequence[LeftOut], count: int, what: str = "images", split: str = ""
) -> None:
    """Log a warning that counts and names the files of `folder` that are not among the `count` images in use."""
    if left_out:
        log.warning("%s: %s", folder, about_left_out(left_out, count, what, split))


def about_left_out(
    left_out: Sequence[LeftOut], count: int, what: str = "images", split: str = "", most: int = _NAMED
) -> str:
    """Return a sentence that counts the files that are not among the `count` images in use, and names `most` of them.

    Training and `tinyvit data check` both say it, so that their words and numbers are the same.
    """
    verb = "is" if len(left_out) == 1 else "are"
    of_split = f" of the {split} split" if split else ""
    return (
        f"{counted(len(left_out), 'files')} {verb} left out{of_split}, beside {counted(count, what)}: "
        f"{listed_files(left_out, most)}"
    )


def listed_files(left_out: Sequence[LeftOut], most: int = _NAMED) -> str:
    """Return the first of these files with their reasons, and the number of the others."""
    return listed([f"{path} ({reason})" for path, reason in left_out], most)


def listed(names: Sequence[str], most: int = _NAMED) -> str:
    """Return the first names separated by commas, and the number of the others."""
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + others


def class_folders(folder: Path, refuse: Refuse = stop) -> dict[str, Path]:
    """Return the folders of classes in `folder` by their names, in alphabetical order.

    A name is taken in Unicode's composed form (NFC): systems differ in the form in which they write a letter such as é.
    Raises DataError if there are none, and calls `refuse` if two names are the same text.
    """
    if not folder.exists():
        raise DataError(missing(folder, "folder"))
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; the layout is PATH/<class>/<file>, or PATH/train/<class>/<file>, PATH/test/..."
        )
    folders: dict[str, Path] = {}
    for entry in filter(Path.is_dir, _visible(folder)):
        name = same_form(entry.name)
        if name in folders:
            refuse(DataError(f"{folder} has the class {name!r} twice, in two forms of Unicode; merge the two folders"))
        folders.setdefault(name, entry)
    if not folders and files_beside(folder):
        raise DataError(
            f"{folder} holds images, but no folders of classes; if it is one of the classes, give the folder that "
            f"holds it and the others: {folder.parent}"
        )
    if not folders:
        raise DataError(
            f"{folder} holds no folders; the layout is PATH/<class>/<file>, or PATH/train/<class>/<file>, PATH/test/..."
        )
    return dict(sorted(folders.items()))


def same_form(name: str) -> str:
    """Return a name in Unicode's composed form, so that names that look the same are equal."""
    return unicodedata.normalize("NFC", name)


def files_beside(folder: Path) -> list[LeftOut]:
    """Return the image files that lie in `folder` itself, where only folders of classes belong."""
    files = (entry for entry in _visible(folder) if entry.is_file())
    return [LeftOut(file, "in no class") for file in files if file.suffix.lower() in IMAGE_SUFFIXES or kind_of(file)]


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise _cannot_be_listed(folder, error) from error


def _cannot_be_listed(folder: Path, error: OSError) -> DataError:
    return DataError(f"{error.filename or folder} cannot be listed ({error.strerror}): check its permissions")
