"""Pieces of HTML for notebooks. All text is escaped; no colour is set, so that light and dark pages can show it."""

import html
from collections.abc import Iterable

from .terminal import printable

_CELL = "padding:1px 10px 1px 0;text-align:left;vertical-align:top"


def text_html(text: object) -> str:
    """Return text as HTML that shows it."""
    return html.escape(printable(text, field=True))


def table_html(rows: Iterable[tuple[object, ...]]) -> str:
    """Return a table; the first cell of each row is a heading."""
    lines = []
    for first, *others in rows:
        cells = "".join(f'<td style="{_CELL}">{text_html(cell)}</td>' for cell in others)
        lines.append(f'<tr><th scope="row" style="{_CELL}">{text_html(first)}</th>{cells}</tr>')
    return f"<table>{''.join(lines)}</table>"


def details_html(title: object, inside: str) -> str:
    """Return HTML that is folded under a title."""
    return f"<details><summary>{text_html(title)}</summary>{inside}</details>"


def box_html(title: object, *parts: str) -> str:
    """Return a title and what stands below it."""
    return f"<div><div><b>{text_html(title)}</b></div>{''.join(parts)}</div>"
