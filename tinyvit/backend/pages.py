"""HTML pages that need no other file: the frame, the colours, and the filling of templates."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

from .files import open_file

_ASSETS = Path(__file__).with_name("assets")


def page(title: str, body: str, styles: Sequence[str] = (), policy: str = "", head: str = "") -> str:
    """A complete page.

    Parameters
    ----------
    title : plain text.
    body : HTML, from <body> to </body>.
    styles : style sheets, after the one that all pages share.
    policy : what the page may load beside its own styles, such as "script-src 'unsafe-inline'"; otherwise nothing.
    head : further HTML for the head.
    """
    parts = {
        "TITLE": html.escape(title),
        "BODY": body,
        "CSS": "\n".join(((_ASSETS / "base.css").read_text("utf-8"), *styles)),
        "POLICY": policy,
        "HEAD": head,
    }
    return filled((_ASSETS / "frame.html").read_text("utf-8"), parts)


def filled(template: str, parts: dict[str, str]) -> str:
    """The template with its @MARKS@ replaced in one pass, because the parts may contain such marks themselves."""
    return re.sub("@([A-Z]+)@", lambda mark: parts[mark[1]], template)


def is_page(path: Path) -> bool:
    """Return whether a file is a page that was written here, by its head: its title and all below may differ."""
    head = (_ASSETS / "frame.html").read_text("utf-8").partition("@POLICY@")[0].encode()
    with open_file(path) as file:
        return file.read(len(head)) == head
