"""Where the code of a user failed: its file, line and source, without the frames of benchmarks and of libraries."""

import linecache
import os
import re
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..machine import ROOT
from ..peers import OwnCodeError, describe_error

_OURS = str(ROOT / "benchmarks") + os.sep
_LIBRARIES = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_PARTS = {"site-packages", "dist-packages", "importlib"}  # also of libraries that another environment holds


def own_error(error: Exception, otherwise: str = "") -> OwnCodeError:
    """What to raise in place of an exception of a user's code: its kind, its message, and the line that raised it.

    `otherwise` is said where no line of the user's code was reached.
    """
    place = place_of(error)
    return OwnCodeError(describe_error(error) + (f", at {place}" if place else otherwise))


def place_of(error: Exception) -> str:
    """The innermost line of the user's code that an exception passed through; "" if it passed through none.

    That is the last frame outside of installed libraries. Numba has no frames while it compiles, but names the place.
    """
    if isinstance(error, SyntaxError) and error.filename:  # the file that it is about has no frame
        return line_of(error.filename, error.lineno or 1)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    if frames:
        return line_of(frames[-1].filename, frames[-1].lineno or 1, frames[-1].name)
    named = re.findall(r'^File "(.+)", line (\d+):', str(error), re.MULTILINE)
    return line_of(named[-1][0], int(named[-1][1])) if named else ""


def _is_own(file: str) -> bool:
    return not file.startswith((_OURS, "<", *_LIBRARIES)) and not _PARTS.intersection(Path(file).parts)


def line_of(file: str, line: int, function: str = "") -> str:
    """A line of a file for the reader: `mine.py:7, in attention: return q @ k`."""
    source = linecache.getline(file, line).strip()
    inside = f", in {function}" if function and not function.startswith("<") else ""
    return f"{_shown(file)}:{line}{inside}" + (f": {source}" if source else "")


def definition(function: Callable[..., Any]) -> str:
    """Where a function begins: `attention at mine.py:4`; only its name if it was not written in Python."""
    written = getattr(function, "py_func", function)  # what Numba compiled
    name, code = getattr(written, "__name__", repr(written)), getattr(written, "__code__", None)
    return name if code is None else f"{name} at {_shown(code.co_filename)}:{code.co_firstlineno}"


def _shown(file: str) -> str:
    """The path of a file, relative to the current folder if the file is in it."""
    path = Path(file).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
