"""Where compiled kernels are kept, and how they are read back.

What is kept is machine code, or a pickle that leads to it, so whoever writes it decides what this process runs. It is
therefore kept only in folders into which no other user can put files, and every file carries a checksum that is
verified before anything else is done with the content. An edit of the sources never meets old code, because the folder
is named after a hash of the sources.
"""

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


@functools.cache
def cache_folder() -> Path:
    """Return the folder of compiled kernels, which need not exist yet; its path is absolute and has no links.

    It is in NUMBA_CACHE_DIR, else in tinyvit/kernels of the user's cache folder; its name holds a hash of all kernel
    sources. If other users could put files there, or there is no such folder, it is in a folder for temporary files
    that belongs to this user alone, and standard error says so.
    """
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]
    wanted = os.environ.get("NUMBA_CACHE_DIR")
    base = None if wanted else _users_cache()
    if wanted:
        folder = Path(os.path.realpath(wanted)) / f"tinyvit-{digest}"
    elif base is not None:
        folder = Path(os.path.realpath(base / "tinyvit" / "kernels")) / digest
    else:
        return _private_folder("there is no home folder; XDG_CACHE_HOME can name another one") / f"tinyvit-{digest}"
    if reason := _unsafe(folder):
        return _private_folder(reason) / f"tinyvit-{digest}"
    return folder


def _users_cache() -> Path | None:
    """Return the folder in which this user's programs keep what they can make again, or None if there is no such."""
    base = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    if base and os.path.isabs(base):
        return Path(base)
    try:
        home = Path.home()
    except RuntimeError:  # HOME is not set, and the system does not know this user
        return None
    return home / ".cache" if home.is_absolute() else None


def _private_folder(reason: str) -> Path:
    """Return a folder for temporary files of this user alone, and warn that the usual place is not used."""
    try:
        place = Path(os.path.realpath(tempfile.gettempdir()))
        folder = place / f"tinyvit-{os.geteuid() if hasattr(os, 'geteuid') else 'kernels'}"
        if _unsafe(folder):  # somebody else made it first
            folder = Path(tempfile.mkdtemp(prefix="tinyvit-", dir=place))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
    except OSError:  # no folder for temporary files can be written
        return Path(os.devnull)
    print(f"tinyvit: compiled kernels are kept in {str(folder)!r}: {reason}", file=sys.stderr, flush=True)
    return folder


def _unsafe(folder: Path) -> str | None:
    """Return the reason why another user could put files into `folder`, or None; its path must have no links.

    What lies below a level that does not exist, or a link that leads nowhere, is not there and cannot be read; if it is
    made, it is made for this user alone.

    Every existing level must belong to this user or to root, and nobody else may write to it. Others may write to a
    level above `folder` if it is sticky, as /tmp is, because they cannot replace what is in it. Systems without such
    modes keep the folders of users apart in other ways.
    """
    if not hasattr(os, "geteuid"):
        return None
    for level in (*reversed(folder.parents), folder):
        try:
            found = os.lstat(level)
        except OSError:
            return None
        if stat.S_ISLNK(found.st_mode):
            return None
        if _belongs_to_another(found):
            return f"{str(level)!r} belongs to another user"
        if found.st_mode & _OTHERS_MAY_WRITE and (level == folder or not found.st_mode & stat.S_ISVTX):
            return f"other users may write to {str(level)!r}; `chmod go-w` would forbid it"
    return None


def _belongs_to_another(found: os.stat_result) -> bool:
    return found.st_uid not in (0, os.geteuid())


def for_children() -> dict[str, str]:
    """Return the environment variables with which a child process finds the same cache folder."""
    folder = cache_folder()
    return {"NUMBA_CACHE_DIR": str(folder.parent)} if folder.name.startswith("tinyvit-") else {}


@functools.cache
def can_keep() -> bool:
    """Whether the cache folder, which is made if necessary, can be written, and is safe now that it exists."""
    folder = cache_folder()
    try:
        _make_private(folder)
        with tempfile.TemporaryFile(dir=folder):
            return _is_safe(folder)
    except OSError:
        return False


@functools.cache
def can_read() -> bool:
    """Whether this user may read the cache folder, and it is safe. It may be on a read-only disk."""
    return can_keep() or (os.access(cache_folder(), os.R_OK | os.X_OK) and _is_safe(cache_folder()))


def _is_safe(folder: Path) -> bool:
    return _unsafe(folder) is None and os.path.realpath(folder) == str(folder)


def _make_private(folder: Path) -> None:
    """Make a folder and the missing ones above it, each for this user alone."""
    for level in (*reversed(folder.parents), folder):
        if not level.is_dir():
            with contextlib.suppress(FileExistsError):  # another process was faster
                level.mkdir(mode=0o700)
    if hasattr(os, "geteuid") and folder.stat().st_uid == os.geteuid():
        folder.chmod(0o700)


def read(file: Path) -> bytes | None:
    """Return what `write` wrote, or None if there is none, if it is damaged, or if another user could have written it.

    The checksum covers the name of the file, too, so that no file is taken for another one.
    """
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    try:
        with open(os.open(file, flags), "rb") as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode) or (hasattr(os, "geteuid") and _could_be_foreign(found)):
                return None
            kept = opened.read()
    except OSError:
        return None
    digest, content = kept[:32], kept[32:]
    return content if _digest(file, content) == digest else None


def _could_be_foreign(found: os.stat_result) -> bool:
    return _belongs_to_another(found) or bool(found.st_mode & _OTHERS_MAY_WRITE)


def write(file: Path, content: bytes) -> None:
    """Write a file for `read`, atomically. Raises OSError if the folder cannot be written or the disk is full."""
    _make_private(file.parent)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
        try:
            part.write(_digest(file, content) + content)
            part.close()
            os.replace(part.name, file)
        except BaseException:
            part.close()
            os.unlink(part.name)
            raise


def _digest(file: Path, content: bytes) -> bytes:
    return hashlib.sha256(os.fsencode(file.name) + b"\0" + content).digest()


def kept_object(name: str, target: str, compile_it: Callable[[], bytes]) -> bytes:
    """Return the object code that `compile_it()` makes for `target`, from the cache if it is there."""
    file = cache_folder() / f"{name}-{hashlib.sha256(target.encode()).hexdigest()[:16]}.o"
    code = read(file) if can_read() else None
    if code is None:  # a truncated file would crash the process that runs it
        code = compile_it()
        if can_keep():
            with contextlib.suppress(OSError):
                write(file, code)
    return code
