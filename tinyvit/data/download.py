"""Fetching a data set: from the first mirror that has it, resumed, verified, and never half-written."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import DataError
from .sources import SOURCES, RemoteFile, Source, check_name, data_roots, is_complete, missing_names

if TYPE_CHECKING:
    from http.client import HTTPResponse

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 8  # transfers tried per mirror, as long as each one changes what is on disk
_CHUNK = 1 << 18


def fetch(name: str, destination: str | os.PathLike[str] | None = None, *, timeout: float = TIMEOUT) -> Path:
    """Make sure that a data set is on disk, and return its folder.

    A data set that ``$TINYVIT_DATA`` holds is left as it is. What is in the cache folder, or in
    `destination`, is verified, and only what is missing or damaged is downloaded. Interrupted downloads go on
    where they stopped.

    Parameters
    ----------
    name : str
        One of `dataset_names`. There is nothing to do for the digits, which come with the package, and for
        what is generated.
    destination : path, optional
        Download to ``destination/<name>`` instead of the cache folder; ``TINYVIT_DATA=destination`` then
        finds it.
    timeout : float
        Seconds to wait for a silent server.

    Raises
    ------
    DataError
        If the name is unknown, no mirror gave a file with the published checksum, or the disk is full or not
        writable.
    """
    check_name(name)
    if name not in SOURCES:  # the digits come with the package, others are generated
        return Path(__file__).parent
    source = SOURCES[name]
    *elsewhere, root = data_roots() if destination is None else [Path(destination)]
    for other in elsewhere:
        if is_complete(other / name, source):
            return other / name
    folder = root / name
    try:
        if _missing(folder, source):
            folder.mkdir(parents=True, exist_ok=True)
            with _exclusive(folder / ".lock"):
                for file in _missing(folder, source):  # another process may have brought some meanwhile
                    _download(file, _urls(name, source, file), folder, timeout)
    except DataError as error:
        raise DataError(f"{error}{_unused(name, elsewhere)}") from error
    except OSError as error:
        raise DataError(
            f"{name} cannot be written to {folder}: {error.strerror or error}; what has arrived is kept, so "
            f"make room ({sum(file.size for file in source.files) / 1e6:.0f} MB in all) or choose another "
            f"folder, then run `tinyvit data fetch {name}` again"
        ) from error
    return folder


class _Failed(Exception):
    """A transfer that did not complete, and why."""


def _unused(name: str, roots: Sequence[Path]) -> str:
    """Tell, at the end of an error, of folders that would have served if they were complete."""
    folders = [root / name for root in roots if (root / name).is_dir()]
    return "".join(f"\n{folder} lacks {', '.join(missing_names(folder, SOURCES[name]))}" for folder in folders)


def _missing(folder: Path, source: Source) -> list[RemoteFile]:
    return [file for file in source.files if _digest(folder / file.name) != file.sha256]


def _urls(name: str, source: Source, file: RemoteFile) -> list[str]:
    bases = list(source.mirrors)
    if own := os.environ.get("TINYVIT_MIRROR"):
        if not own.startswith(("http://", "https://")):
            raise DataError(f"TINYVIT_MIRROR={own} is not an http(s) URL; for a folder, set TINYVIT_DATA")
        bases.insert(0, f"{own.rstrip('/')}/{name}")
    return [f"{base.rstrip('/')}/{file.name}" for base in bases]


def _download(file: RemoteFile, urls: Sequence[str], folder: Path, timeout: float) -> None:
    """Bring one file into its folder, from the first mirror that gives the right bytes.

    The partial file is common to all mirrors, because the checksum says what it must become. A mirror is
    tried again as long as that changes the partial file: it grew before the connection broke, or it was wrong
    and was thrown away.
    """
    part = folder / f"{file.name}.part"
    reasons: dict[str, _Failed] = {}
    with _progress(file) as report:
        for url in urls:
            for _ in range(ATTEMPTS):
                before = _size(part)
                try:
                    _transfer(url, part, file.size, timeout, report)
                    _publish(part, folder, file)
                    return
                except _Failed as failure:
                    reasons[url] = failure
                if _size(part) == before:
                    break
    tried = "".join(f"\n  {url}: {reason}" for url, reason in reasons.items())
    raise DataError(
        f"{file.name} could not be downloaded:{tried}\n"
        f"try again later, put the file into {folder} by hand, or set TINYVIT_MIRROR to the URL of a mirror"
    )


def _transfer(url: str, part: Path, size: int, timeout: float, report: Callable[[int], None]) -> None:
    """Append to the partial file what it lacks; raise _Failed unless it then has its full size.

    Trouble with the network raises _Failed, trouble with the disk OSError.
    """
    import http.client
    import urllib.error
    import urllib.request

    start = _size(part)
    if start >= size:  # complete, or not a part of this file: the checksum will tell
        return
    headers = {"User-Agent": "tinyvit"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            raise _Failed(f"HTTP status {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _Failed(str(error.reason)) from error
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: not a URL
        raise _Failed(str(error) or type(error).__name__) from error
    with response:
        start = _first_byte(response, start, size)
        with open(part, "ab" if start else "wb") as output:
            received = start
            while received <= size:
                try:
                    chunk = response.read1(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    reason = str(error) or type(error).__name__
                    raise _Failed(f"{reason} after {received:,} of {size:,} bytes") from error
                if not chunk:
                    break
                output.write(chunk)
                received += len(chunk)
                report(received)
    if received < size:
        raise _Failed(f"the connection closed after {received:,} of {size:,} bytes")


def _first_byte(response: "HTTPResponse", start: int, size: int) -> int:
    """Return the position at which the body of a response begins; raise _Failed if it is of another file."""
    kind = response.headers.get_content_type()
    if kind == "text/html":
        raise _Failed("it answered with an HTML page")
    if response.status == 206:
        expected = f"bytes {start}-{size - 1}/{size}"
        found = response.headers.get("Content-Range", "no range")
        if found != expected:
            raise _Failed(f"it sent {found} where {expected} was asked for: its file is another one")
        return start
    length = response.headers.get("Content-Length")
    if response.status != 200 or (length is not None and length != str(size)):
        raise _Failed(f"it sent {length} bytes of {kind} (HTTP status {response.status}), not {size}")
    return 0  # a server that does not know ranges sends the whole file


def _publish(part: Path, folder: Path, file: RemoteFile) -> None:
    """Give a verified file its name, durably; throw away one with another checksum."""
    found = _digest(part)
    if found != file.sha256:
        part.unlink()
        raise _Failed(f"the SHA-256 of what it sent is {found}, not the published {file.sha256}")
    with open(part, "rb+") as written:
        os.fsync(written.fileno())
    os.replace(part, folder / file.name)
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that other processes and threads wait for; the system frees it if this process dies."""
    with open(path, "wb") as file:
        if not _lock(file, wait=False):
            print(f"waiting for another process that is writing to {path.parent}", file=sys.stderr)
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
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


@contextmanager
def _progress(file: RemoteFile) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; yield the function that is told how many bytes have arrived."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(file.name, total=file.size)
        yield lambda received: bar.update(task, completed=received)
