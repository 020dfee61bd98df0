"""Read files that others may have written: regular ones only, and within limits of size and depth.

The limits of all formats stand here. A file beyond them is a mistake or an attack, and would otherwise exhaust memory.
"""

import contextlib
import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from .words import did_you_mean

MAX_TEXT_BYTES = 64 << 20  # of a recipe, a vocabulary, a list of questions
MAX_IMAGE_BYTES = 512 << 20  # of an image file
MAX_PIXELS = 50_000_000  # of an image; a larger one is a mistake or an attack (a "decompression bomb")
MAX_DEPTH = 100  # of nested lists and mappings
MAX_UNPACKED = 64  # times the size of an archive


def open_file(path: str | os.PathLike[str], most: int | None = None) -> BufferedReader:
    """Open a regular file for reading; anything else is refused without opening it, because it could wait for ever.

    Raises OSError, also if the file is larger than `most` bytes.
    """
    _require_regular(os.stat(path), path)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(descriptor)  # of what was opened: the name may mean another file by now
        _require_regular(found, path)
        if most is not None and found.st_size > most:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, more than {most:,}", os.fspath(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", os.fspath(path))


def sync_folder(folder: Path) -> None:
    """Make sure, where the system can, that a renaming in `folder` survives a power cut."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows has no such call
        return
    with contextlib.suppress(OSError):  # some file systems cannot synchronize folders; the file itself is written
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text in a file, without a byte order mark. Raises OSError, and ValueError if it is not UTF-8."""
    with open_file(path, MAX_TEXT_BYTES) as file:
        return file.read().decode("utf-8-sig")


def parse_json(text: str) -> Any:
    """Return what a JSON document says. Raises ValueError, also if it is nested too deeply."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} times") from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = [item for item in level if isinstance(item, list | dict)]
        level = [x for item in nested for x in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} times")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder to fill. At the end it is renamed to `path`, which is therefore complete or absent.

    Raises OSError, also if `path` exists and is not an empty folder.
    """
    target = Path(path)
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise OSError(errno.EEXIST, "it exists and is not an empty folder; give the name of a new one", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        ready = Path(scratch) / "folder"
        ready.mkdir()
        yield ready
        if target.is_dir():
            target.rmdir()
        ready.rename(target)


def missing(path: str | os.PathLike[str], what: str = "file") -> str:
    """Return a message that there is no `what` at a path, with a similar name, or the missing folder above it."""
    place, said = Path(path), f"there is no {what} {os.fspath(path)!r}"
    if not os.path.lexists(place.parent):
        above = next(p for p in reversed(place.parents) if not os.path.lexists(p))
        return f"{said}, because {missing(above, 'folder')}"
    return said + name_beside(place)


def name_beside(path: str | os.PathLike[str]) -> str:
    """Return a suggestion, as `did_you_mean` does, among the names beside a missing path."""
    place = Path(path)
    try:
        beside = sorted(name for name in os.listdir(place.parent) if not name.startswith("."))
    except OSError:
        return ""
    like = [name for name in beside if did_you_mean(place.stem, [Path(name).stem])]  # not by the suffix alone
    return did_you_mean(place.name, like)
