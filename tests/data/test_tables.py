"""Tables: cells of any text come back, lines with too many cells are refused, columns say what a table is for."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyvit.data import TextTable
from tinyvit.data.own_texts import CAPTIONS, QUESTIONS, TRANSLATIONS, columns_in
from tinyvit.data.tables import read_lines
from tinyvit.errors import DataError


def written(path: Path, rows: list[tuple], delimiter: str) -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerows(rows)
    path.write_text(text.getvalue(), "utf-8")
    return path


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(
    rows=st.lists(st.tuples(CELLS, CELLS), max_size=6),
    delimiter=st.sampled_from(",;\t"),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cells_come_back_as_they_were_written(tmp_path, rows, delimiter) -> None:
    given_rows = [("source", "target"), *rows]
    found = [tuple(line.cells) for line in read_lines(written(tmp_path / "t.csv", given_rows, delimiter))]
    assert found == [row for row in given_rows if any(cell.strip() for cell in row)]


def test_sources_with_a_comma_but_without_quotes_are_refused(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("source,target\ngood morning, sir,guten Morgen\n", "utf-8")
    with pytest.raises(DataError, match="line 2 has 3 cells, but the first line has 2"):
        TextTable(tmp_path / "t.csv", TRANSLATIONS)
    with pytest.raises(DataError, match="line 2 has 3 cells"):
        columns_in(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("image,caption", CAPTIONS),
        ("File;Text;split", CAPTIONS),
        ("filename,description", CAPTIONS),
        ("image,question,answer", QUESTIONS),
        ("answer\tpath\tquestion", QUESTIONS),
        ("source,target", TRANSLATIONS),
        ("src\ttgt", TRANSLATIONS),
        ("file,label", None),
        ("image,text,label", None),
        ("file,target", None),
        ("x,y", None),
        ("", None),
    ],
)
def test_the_columns_say_what_a_table_is_for(tmp_path, head, kind) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"{head}\n", "utf-8")
    assert columns_in(path) == kind
    path.rename(tmp_path / "x.txt")
    assert columns_in(tmp_path / "x.txt") is None
    assert columns_in(tmp_path) is None
