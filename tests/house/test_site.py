"""What the documentation site makes of files, docstrings and links. Building it needs Sphinx, this does not."""

import re
from pathlib import Path

import pytest
from extension.docstrings import as_rst
from extension.gallery import unless_there
from extension.links import broken_links
from extension.pages import PAGES, relinked, section_of, write_pages
from sources import ROOT


def test_a_section_is_taken_with_its_headings_one_level_higher() -> None:
    text = "# All\n\n## One\n\nfirst\n\n### Part\n\n## Two\n\nsecond\n"
    assert section_of(text, "One") == "# One\n\nfirst\n\n## Part\n\n"
    assert section_of(text, "Two") == "# Two\n\nsecond\n"
    with pytest.raises(ValueError, match="'Three'"):
        section_of(text, "Three")


@pytest.mark.parametrize(
    ("text", "source", "page", "expected"),
    [
        ("[a](kernels/README.md)", "README.md", "index", "[a](generated/kernels.md)"),
        ("[a](linear/README.md#x)", "kernels/README.md", "generated/kernels", "[a](kernels_linear.md#x)"),
        ("[a](docs/guides/study.md)", "README.md", "index", "[a](guides/study.md)"),
        ("[a](../../SECURITY.md)", "docs/guides/study.md", "guides/study", "[a](../generated/security.md)"),
        ("[a](study.md#b)", "docs/guides/gpu.md", "guides/gpu", "[a](study.md#b)"),
        ("[a](setup.py)", "README.md", "index", "`a`"),
        ("[a](https://example.org/x) [b](#c)", "README.md", "index", "[a](https://example.org/x) [b](#c)"),
        ("![a](setup.py)", "README.md", "index", "![a](setup.py)"),
    ],
)
def test_links_lead_to_pages(text: str, source: str, page: str, expected: str) -> None:
    assert relinked(text, source, page) == expected


def test_a_link_to_a_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"nothing\.md"):
        relinked("[a](nothing.md)", "README.md", "index")


def test_links_and_pictures_of_pages_lead_to_files() -> None:
    """All links between files of the repository, read as a forge reads them."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/guides").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)", page.read_text("utf-8"))]
    assert len(links) > 30
    assert not [(page.name, link) for page, link in links if not (page.parent / link).exists()]


def test_every_page_is_in_a_table_of_contents(tmp_path: Path) -> None:
    write_pages(tmp_path / "generated")
    index = (ROOT / "docs/index.md").read_text("utf-8")
    assert not [page for page in PAGES if f"\ngenerated/{page}\n" not in index]
    assert not [p.stem for p in (ROOT / "docs/guides").glob("*.md") if f"\nguides/{p.stem}\n" not in index]
    assert {p.stem for p in (tmp_path / "generated").iterdir()} >= set(PAGES)


def test_a_page_of_the_gallery_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    page = tmp_path / "generated/gallery/gallery/a.html"
    page.parent.mkdir(parents=True)
    made = []

    def killed(path: str) -> None:
        Path(path).write_text("<html>")
        Path(path).with_name("run").mkdir()
        raise KeyboardInterrupt

    def complete(path: str) -> None:
        Path(path).with_name("run").mkdir()  # what a build that was killed left would be in the way
        made.append(Path(path).write_text("<html></html>"))

    with pytest.raises(KeyboardInterrupt):
        unless_there(page, killed)
    assert not list(page.parents[1].rglob("*.*"))
    unless_there(page, complete)
    unless_there(page, complete)
    assert page.read_text() == "<html></html>"
    assert len(made) == 1
    assert [path.name for path in (tmp_path / "generated").rglob("*")] == ["gallery", "gallery", "a.html"]


def test_docstrings_become_restructuredtext() -> None:
    docstring = [
        "A stack of `Block`s: x * y_, |x|.",
        "",
        "    y = x * 2",
        "",
        "Parameters",
        "----------",
        "x, y : float",
        "    What * is.",
        "",
        "Raises ValueError.",
    ]
    assert [line for line in as_rst(docstring) if line] == [
        r"A stack of `Block`s: x \* y\_, \|x\|.",
        "::",
        "    y = x * 2",
        "**Parameters**",
        "- `x, y`: float",
        r"  What \* is.",
        "Raises ValueError.",
    ]


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#x"></a><a href="b.html#y"></a><img src="c.png"><a href="#z"></a>')
    (tmp_path / "b.html").write_text('<p id="x"></p><a href="a.html"></a><a href="https://example.org/none"></a>')
    assert broken_links(tmp_path) == ["a.html: b.html#y", "a.html: c.png", "a.html: #z"]
