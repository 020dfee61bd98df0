"""Tables of the user's own: text files in which a line is a row, with the names of the columns in the first line.

Cells are separated by commas, semicolons or tabs, whichever the first line has most of. A cell that holds one of them,
or a line break, stands in double quotes, in which a quote is written twice (RFC 4180). The encoding is UTF-8. A line
with more cells than the first is refused: most often a comma in a text that is not in quotes has cut the text in two.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..backend.files import missing, read_text
from ..backend.words import did_you_mean
from ..errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class Line(NamedTuple):
    """A row of a table, and the number of the line of the file on which it ends."""

    number: int
    cells: list[str]


def is_table(path: str | Path) -> bool:
    """Return whether a path is that of a table, by its suffix."""
    return Path(path).suffix.lower() in TABLE_SUFFIXES and not Path(path).is_dir()


def read_lines(path: Path) -> list[Line]:
    """Return the rows of a table, also that of the names, without empty ones. Raises DataError."""
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {number}: the byte {error.object[error.start]:#04x} is not UTF-8; save the table as UTF-8 "
            "(a spreadsheet program calls it 'CSV UTF-8')"
        ) from error
    except FileNotFoundError as error:
        raise DataError(missing(path, "table")) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read as a table: {error.strerror}") from error
    if "\0" in text:
        raise DataError(f"{path} is not a table of text: it holds zero bytes; save it as CSV in UTF-8")
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    # With newline="", line breaks within quotes stay as they are, as the csv module asks for.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append(Line(reader.line_num, cells))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {_explained(error)}") from error
    _require_no_more_cells(path, lines, separator)
    return lines


def _explained(error: csv.Error) -> str:
    if "field larger than field limit" in str(error):
        return (
            f"a cell has more than {csv.field_size_limit():,} characters; shorten it, or look for a quote that is not "
            "closed"
        )
    return f"{error}; a cell that holds a quote stands in quotes, and the quote in it is written twice"


def _require_no_more_cells(path: Path, lines: Sequence[Line], separator: str) -> None:
    """Raise DataError if a line has more cells than the first one, apart from empty cells at the end of either."""
    most = _filled(lines[0]) if lines else 0
    for line in lines:
        if (count := _filled(line)) > most:
            name = {",": "comma", ";": "semicolon", "\t": "tab"}[separator]
            raise DataError(
                f"{path}, line {line.number} has {count} cells, but the first line has {most}; put a text that holds a "
                f'{name} in double quotes ("..."), or name every column in the first line'
            )


def _filled(line: Line) -> int:
    """Return the number of cells up to the last one that is not empty."""
    return max((i for i, cell in enumerate(line.cells, 1) if cell.strip()), default=0)


def named_columns(line: Line, known: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Return for each meaning in `known` the columns that the line of the names gives it, if there are any."""
    names = [cell.strip().lower() for cell in line.cells]
    found = {meaning: [i for i, name in enumerate(names) if name in usual] for meaning, usual in known.items()}
    return {meaning: columns for meaning, columns in found.items() if columns}


def columns_of(path: Path, line: Line, known: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the column of each meaning in `known` that the line of the names has. Raises DataError if it has two."""
    found = named_columns(line, known)
    for meaning, columns in found.items():
        if len(columns) > 1:
            names = " and ".join(repr(line.cells[i].strip()) for i in columns)
            raise DataError(
                f"{path} has {len(columns)} columns for the {meaning}: {names}; keep one of them, and remove or rename "
                "the others"
            )
    return {meaning: columns[0] for meaning, columns in found.items()}


def shown_columns(line: Line, known: Iterable[Sequence[str]], lacking: Iterable[Sequence[str]]) -> str:
    """Return the names of the columns, each that is not among the `known` with the one of those `lacking` like it."""
    names = {name for usual in known for name in usual}
    wanted = [name for usual in lacking for name in usual]
    cells = [cell.strip() for cell in line.cells]
    return ", ".join(cell if cell.lower() in names else f"{cell}{did_you_mean(cell, wanted)}" for cell in cells)


def where_paths_begin(table: Path) -> str:
    """Say where the paths in a table begin, beside files that do not exist."""
    return f"paths in a table begin at its folder, {table.parent.resolve()}"


def split_of(path: Path, number: int, name: str) -> str:
    """Return the split that a cell on line `number` names. Raises DataError."""
    for split, names in SPLIT_NAMES.items():
        if name.lower() in (split, *names):
            return split
    raise DataError(f"{path}, line {number}: the split is {name!r}; it must be train, val or test")
