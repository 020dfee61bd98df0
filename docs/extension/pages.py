"""Pages made of files that the repository has anyway: READMEs, sections of CONTRIBUTING.md, notebooks.

They are written to `docs/generated/`. Links between files of the repository are turned into links between pages, so
that all of them work both here and where the repository is browsed.
"""

import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent

# The page of each file, or of a section of it, without the suffix: all are in docs/generated.
PAGES: dict[str, tuple[str, str | None]] = {
    "operation": ("CONTRIBUTING.md", "Add an operation"),
    "kernel": ("CONTRIBUTING.md", "Add a kernel"),
    "model": ("CONTRIBUTING.md", "Add a model"),
    "recipe": ("CONTRIBUTING.md", "Add a recipe"),
    "task": ("CONTRIBUTING.md", "Add a task"),
    "benchmark": ("CONTRIBUTING.md", "Add a benchmark"),
    "contributing": ("CONTRIBUTING.md", None),
    "changelog": ("CHANGELOG.md", None),
    "security": ("SECURITY.md", None),
    "kernels": ("kernels/README.md", None),
    "kernels_linear": ("kernels/linear/README.md", None),
    "benchmarks": ("benchmarks/README.md", None),
    "programs": ("tinyvit/program/README.md", None),
    "several_processes": ("tinyvit/distributed/README.md", None),
}
PAGE_OF = {name: page for page, (name, section) in PAGES.items() if section is None} | {"README.md": "../index"}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)]*)?\)")


def section_of(text: str, title: str) -> str:
    """Return the section `## title` of a Markdown text, with its headings one level higher."""
    found = re.search(rf"^(## {re.escape(title)}\n.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"there is no section {title!r}")
    return re.sub(r"^#(#+ )", r"\1", found[1], flags=re.MULTILINE)


def relinked(text: str, source: str, page: str) -> str:
    """Return Markdown of the file `source` of the repository for the page `page` of the site, which may be elsewhere.

    A link to a file that is a page becomes a link to the page, and one to another file of the repository its text.
    """

    def changed(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        file = PurePosixPath(os.path.normpath(PurePosixPath(source).parent / target))
        if str(file) in PAGE_OF:
            goal = f"generated/{PAGE_OF[str(file)]}.md"
        elif str(file).startswith("notebooks/") and file.suffix == ".ipynb":
            goal = f"generated/{file.name}"
        elif str(file) == "notebooks":
            goal = "lessons.md"
        elif str(file).startswith("docs/"):
            goal = str(file.relative_to("docs"))
        else:
            if not (ROOT / file).exists():
                raise ValueError(f"{source} links to {target}, which does not exist")
            return words if words.startswith("`") else f"`{words}`"
        return f"[{words}]({os.path.relpath(goal, PurePosixPath(page).parent)}{anchor})"

    return _LINK.sub(changed, text)


def write_pages(folder: Path) -> None:
    """Write the page of every file in PAGES, and the notebooks, to `folder`."""
    folder.mkdir(exist_ok=True)
    for page, (name, section) in PAGES.items():
        text = (ROOT / name).read_text("utf-8")
        text = text if section is None else section_of(text, section)
        _write(folder / f"{page}.md", relinked(text, name, f"generated/{page}"))
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        if not (folder / notebook.name).exists() or (folder / notebook.name).read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, folder / notebook.name)


def _write(path: Path, text: str) -> None:
    """Write a file unless it has this text already: Sphinx reads again what is newer."""
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def _relink(app: Any, name: str, source: list[str]) -> None:
    """Change the links of the pages that are written by hand."""
    if not name.startswith("generated/") and Path(app.env.doc2path(name)).suffix == ".md":
        source[0] = relinked(source[0], f"docs/{name}.md", name)


def setup(app: Any) -> dict[str, bool]:
    app.connect("config-inited", lambda app, config: write_pages(DOCS / "generated"))
    app.connect("source-read", _relink)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
