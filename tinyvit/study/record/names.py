"""What the user's program calls things: the variables that hold an array, and the source text of an expression.

A name is given only if it is certain. An array that several variables hold has no name, and an expression has no text
if its file has changed since it was compiled.
"""

import ast
import functools
import linecache
import sys
from collections.abc import Iterable, Iterator, Mapping
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

MAX_TEXT = 100  # characters of an expression; a longer one is cut


def variable_of(x: Any, frame: FrameType | None) -> str | None:
    """The only variable in the scope of a frame that holds `x`: a local one, or else a global that its code names."""
    if frame is None:
        return None
    local = local_variables(frame)
    names = [name for name, value in local.items() if value is x]
    if not names:
        known = frame.f_globals
        names = [name for name in frame.f_code.co_names if name not in local and known.get(name) is x]
    return names[0] if len(names) == 1 else None


def local_variables(frame: FrameType) -> Mapping[str, Any]:
    """The local variables of a frame; of a module, the global ones that its code names.

    Before Python 3.13, `f_locals` of a function is a copy that the frame keeps, and with it arrays that the function
    has deleted since. It is emptied here unless somebody else has it, such as a debugger.
    """
    code = frame.f_code
    if not code.co_flags & CO_OPTIMIZED:
        found = frame.f_locals
        return {name: found[name] for name in code.co_names if name in found}
    found = frame.f_locals
    if sys.version_info >= (3, 13):
        return found
    variables = dict(found)
    if sys.getrefcount(found) <= 3:  # the frame, this function, and the argument of getrefcount
        found.clear()
    return variables


def caller_outside(frame: FrameType | None, folders: Iterable[str]) -> FrameType | None:
    """The innermost frame, from `frame` outwards, whose file is in none of these folders or files."""
    prefixes = tuple(folders)
    while frame is not None and frame.f_code.co_filename.startswith(prefixes):
        frame = frame.f_back
    return frame


# Source text --------------------------------------------------------------------------------------------------------


def expression_at(code: CodeType, instruction: int) -> str:
    """The source text of the expression that an instruction of `code` computes; empty if it is not certain."""
    first, last, start, end = list(code.co_positions())[instruction // 2]
    if first is None or last is None or start is None or end is None:
        return ""
    linecache.checkcache(code.co_filename)
    if not _is_unchanged(code, code.co_filename, _stamp(code.co_filename)):
        return ""
    lines = [linecache.getline(code.co_filename, n).encode() for n in range(first, last + 1)]  # columns count bytes
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    try:
        text = ast.unparse(ast.parse(f"({b''.join(lines).decode()})", mode="eval"))
    except (SyntaxError, UnicodeDecodeError):
        return ""
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 4]} ..."


def _stamp(name: str) -> tuple[int, int] | None:
    """What changes with a file; None if there is no such file."""
    try:
        status = Path(name).stat()
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size


@functools.cache
def _is_unchanged(code: CodeType, name: str, stamp: tuple[int, int] | None) -> bool:
    """Whether the source of `code` still compiles to it. Cells of notebooks are no files, and cannot change.

    `name` is that of its file, because equal codes of two files count as one key.
    """
    lines = linecache.getlines(name)
    if not lines or stamp is None:
        return bool(lines)
    try:
        compiled = compile("".join(lines), name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return any(_is_same(code, other) for other in _codes(compiled))


def _is_same(a: CodeType, b: CodeType) -> bool:
    """Whether two codes of one file have the same place and the same instructions."""
    places = [(c.co_name, c.co_firstlineno, c.co_code, c.co_names, tuple(c.co_positions())) for c in (a, b)]
    return places[0] == places[1]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
