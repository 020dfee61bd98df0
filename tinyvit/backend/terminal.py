"""Print text that may come from files, servers or names of files: nothing in it reaches a terminal as a command.

Everything that the package prints goes through these functions. A terminal obeys the control characters in what it
shows: they could rewrite its screen, its title or, on some, its keys.
"""

import re
import sys

# C0 and C1 controls, line separators, bidirectional controls (which can reverse a name), and lone surrogates.
_CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_IN_A_FIELD, _IN_TEXT = re.compile(f"[{_CONTROLS}]"), re.compile(rf"(?![\n\t])[{_CONTROLS}]")


def printable(text: object, *, field: bool = False) -> str:
    """Return `text` with a backslash code in place of each control character, as in a Python string.

    Line breaks and tabs are kept, unless the text is to be one field of a line.
    """
    return (_IN_A_FIELD if field else _IN_TEXT).sub(_code_of, str(text))


def _code_of(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def show(*fields: object) -> None:
    """Print text, or several fields of a line with tabs between them."""
    print("\t".join(printable(field, field=len(fields) > 1) for field in fields), flush=True)


def head(*names: str) -> None:
    """Print the names of the fields of the lines that follow, if a person reads them: on a terminal only."""
    if sys.stdout.isatty():
        show(*names)


def note(text: object) -> None:
    """Print text on standard error."""
    print(printable(text), file=sys.stderr, flush=True)
