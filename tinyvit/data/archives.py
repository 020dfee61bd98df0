"""Unpack archives of data: only verified ones, only into their folder, completely or not at all."""

import contextlib
import hashlib
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from ..backend.files import MAX_UNPACKED, open_file
from ..backend.terminal import note
from ..errors import DataError
from .formats import damaged

MAX_FILES = 100_000  # in one archive
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError, ValueError)


def unpack(archive: Path, name: str, sha256: str, inside: str, suffixes: tuple[str, ...], parts: Sequence[str]) -> None:
    """Unpack the files of a zip archive into the folder that it lies in, unless its `parts` are there already.

    The archive is verified first. Its files are written to a temporary folder and renamed when all are there, under a
    lock, so that other processes meet either none of them or all.

    Parameters
    ----------
    archive : the file.
    name : the data set that it belongs to, for error messages.
    sha256 : the published checksum of the archive, in hexadecimal digits.
    inside : the folder in the archive to unpack, with a slash at the end.
    suffixes : how the names of the files to unpack end.
    parts : files in it whose presence shows that all are there; the first of them is renamed last.

    Raises
    ------
    DataError
        If the archive is not the published one, would write outside of its folder or more than is plausible, or if the
        folder cannot be written.
    """
    folder = archive.parent
    try:
        with exclusive(folder / ".lock"):
            if all((folder / part).is_file() for part in parts):  # another process was faster
                return
            with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=folder, ignore_cleanup_errors=True) as temporary:
                new, old = Path(temporary) / "new", Path(temporary) / "old"
                new.mkdir()
                old.mkdir()
                _extract(archive, name, sha256, inside, suffixes, new)
                for entry in sorted(new.iterdir(), key=lambda entry: entry.name == parts[0]):
                    with contextlib.suppress(FileNotFoundError):  # an earlier version may have left half of it
                        (folder / entry.name).rename(old / entry.name)
                    entry.rename(folder / entry.name)
    except OSError as error:
        raise DataError(
            f"{archive} cannot be unpacked ({error.strerror or error}): make its folder writable, "
            f"or unset TINYVIT_DATA and run `tinyvit data fetch {name}`"
        ) from error


def _extract(archive: Path, name: str, sha256: str, inside: str, suffixes: tuple[str, ...], target: Path) -> None:
    """Verify an archive, and write its files to the empty folder `target`."""
    with open_file(archive) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise damaged(archive, name, f"has the SHA-256 {found}, not the published {sha256}")
        try:
            with zipfile.ZipFile(file) as opened:
                members = [info for info in opened.infolist() if info.filename.startswith(inside)]
                chosen = [info for info in members if info.filename.endswith(suffixes)]
                _check(chosen, archive, name, inside)
                for info in chosen:
                    place = target / info.filename.removeprefix(inside)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(info) as source, open(place, "xb") as written:
                        shutil.copyfileobj(source, written)  # zipfile stops at the size that it states
        except _DAMAGE as error:
            raise damaged(archive, name, f"is damaged ({error})") from error


def _check(members: list[zipfile.ZipInfo], archive: Path, name: str, inside: str) -> None:
    """Raise DataError if a file would be written outside of the folder, twice, or if they are too many or too large."""
    names = [info.filename.removeprefix(inside) for info in members]
    for one in names:
        parts = PurePosixPath(one).parts
        if one.startswith(("/", "\\")) or not parts or ".." in parts or "\\" in one or ":" in one or "\0" in one:
            raise damaged(archive, name, f"holds a file that would be written elsewhere, {one!r}")
    if len({one.casefold() for one in names}) < len(names):
        raise damaged(archive, name, "holds a file twice")
    size, most = sum(info.file_size for info in members), MAX_UNPACKED * max(archive.stat().st_size, 1 << 16)
    if len(names) > MAX_FILES or size > most:
        raise damaged(archive, name, f"holds {len(names):,} files of {size:,} bytes, more than is plausible")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that other processes and threads wait for; the system releases it if this process dies."""
    with open(path, "wb") as file:
        if not _lock(file, wait=False):
            note(f"waiting for another process that is writing to {path.parent}")
            _lock(file, wait=True)
        yield


def _lock(file: IO[bytes], *, wait: bool) -> bool:
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK if not wait else msvcrt.LK_LOCK, 1)
                return True
            except OSError:  # LK_LOCK gives up after ten seconds
                if not wait:
                    return False
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:  # in a browser there is no other process; JupyterLite has an empty module of that name
        return True
    try:
        flock(file, LOCK_EX if wait else LOCK_EX | LOCK_NB)
        return True
    except BlockingIOError:
        return False
