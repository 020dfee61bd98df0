"""Fetch a data set from the first mirror that has it: downloads are resumed, verified, and never left incomplete."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..backend.files import sync_folder
from ..errors import DataError
from .archives import exclusive
from .sources import SOURCES, RemoteFile, Source, cache_root, check_name, data_roots, is_complete, missing_names

if TYPE_CHECKING:
    from http.client import HTTPResponse

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 8  # transfers tried per mirror, as long as each one changes the partial file
_CHUNK = 1 << 18


def fetch(name: str, destination: str | os.PathLike[str] | None = None, *, timeout: float = TIMEOUT) -> Path:
    """Make sure that a data set is on disk, and return its folder.

    A data set in ``$TINYVIT_DATA`` is left as it is. Files in the cache folder, or in `destination`, are verified, and
    only those that are missing or damaged are downloaded. Interrupted downloads are resumed.

    Parameters
    ----------
    name : str
        One of `dataset_names`. The digits come with the package, and some data sets are generated; these need no
        download.
    destination : path, optional
        Download to ``destination/<name>`` instead of the cache folder; set ``TINYVIT_DATA=destination`` to use it.
    timeout : float
        Seconds to wait for a silent server.

    Raises
    ------
    DataError
        If the name is unknown, if no mirror serves a file with the published checksum, or if the disk is full or not
        writable.
    """
    check_name(name)
    if name not in SOURCES:  # the digits come with the package, others are generated
        return Path(__file__).parent
    source = SOURCES[name]
    elsewhere = data_roots()[:1] if destination is None and os.environ.get("TINYVIT_DATA") else []
    for other in elsewhere:
        if is_complete(other / name, source):
            return other / name
    folder = (cache_root() if destination is None else Path(destination)) / name
    try:
        if _missing(folder, source):
            folder.mkdir(parents=True, exist_ok=True)
            with exclusive(folder / ".lock"):
                for file in _missing(folder, source):  # another process may have downloaded some in the meantime
                    _download(file, _urls(name, source, file), folder, timeout)
    except DataError as error:
        raise DataError(f"{error}{_incomplete(name, elsewhere)}") from error
    except OSError as error:
        raise DataError(
            f"{name} cannot be written to {folder}: {error.strerror or error}; what was downloaded is kept, so "
            f"make room ({sum(file.size for file in source.files) / 1e6:.0f} MB in all) or choose another "
            f"folder, then run `tinyvit data fetch {name}` again"
        ) from error
    return folder


class _Failed(Exception):
    """Raised with the reason if a transfer does not complete; it may quote the server, so it is kept short."""

    def __str__(self) -> str:
        reason = super().__str__()
        return reason if len(reason) <= 300 else f"{reason[:300]} ..."


def _incomplete(name: str, roots: Sequence[Path]) -> str:
    """Return the end of an error message, which names folders that lack some files of the data set."""
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
    """Download one file into its folder, from the first mirror that serves the right bytes.

    All mirrors continue the same partial file, because the checksum decides in the end. A mirror is tried again as long
    as that changes the partial file: it grew before the connection broke, or it was wrong and was deleted.
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
    """Append the missing bytes to the partial file; raise _Failed unless it then has its full size.

    Problems with the network raise _Failed, problems with the disk OSError.
    """
    import http.client
    import urllib.error
    import urllib.request

    start = _size(part)
    if start >= size:  # it is complete, or wrong, which the checksum will show
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
    """Return the position in the file at which a response begins; raise _Failed if it is of another file."""
    kind = response.headers.get_content_type()
    if kind == "text/html":
        raise _Failed("it answered with an HTML page")
    if response.status == 206:
        expected = f"bytes {start}-{size - 1}/{size}"
        found = response.headers.get("Content-Range", "no range")
        if found != expected:
            raise _Failed(f"it sent {found}, but the request was for {expected}: it has another file")
        return start
    length = response.headers.get("Content-Length")
    if response.status != 200 or (length is not None and length != str(size)):
        raise _Failed(f"it sent {length} bytes of {kind} (HTTP status {response.status}), not {size}")
    return 0  # a server without support for ranges sends the complete file


def _publish(part: Path, folder: Path, file: RemoteFile) -> None:
    """Verify a downloaded file and give it its name, durably; delete it if its checksum is wrong."""
    found = _digest(part)
    if found != file.sha256:
        part.unlink()
        raise _Failed(f"it sent bytes with the SHA-256 {found}, not the published {file.sha256}")
    with open(part, "rb+") as written:
        os.fsync(written.fileno())
    os.replace(part, folder / file.name)
    sync_folder(folder)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _progress(file: RemoteFile) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; yield a function to call with the number of bytes received."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(file.name, total=file.size)
        yield lambda received: bar.update(task, completed=received)
