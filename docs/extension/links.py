"""Every link and picture of the site leads somewhere: a warning for each that does not."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The names that links can lead to within a page, and its own links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("id", "name") and value:
                self.names.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def broken_links(folder: Path) -> list[str]:
    """Return "page: link" for each link between files of `folder` that leads nowhere. Other sites are not asked."""
    files = [file for file in sorted(folder.rglob("*.html")) if "_static" not in file.parts]
    pages = {file.resolve(): _Page(file.read_text("utf-8")) for file in files}
    broken = []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            goal = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            known = goal not in pages or not parts.fragment or unquote(parts.fragment) in pages[goal].names
            if not goal.exists() or not known:
                broken.append(f"{file.relative_to(folder.resolve())}: {link}")
    return broken


def _check(app: Any, exception: Exception | None) -> None:
    from sphinx.util import logging

    if exception is None and app.builder.format == "html":
        for line in broken_links(Path(app.outdir)):
            logging.getLogger(__name__).warning("this link leads nowhere: %s", line)


def setup(app: Any) -> dict[str, bool]:
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
