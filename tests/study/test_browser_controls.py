"""Every control of every kind of page does something, in a real browser, and never breaks or empties the page.

Run apart with `python -m pytest -m browser`; it needs Chromium (`apt install chromium`) and Playwright.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_view import DESKTOP, PHONE, View

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.study import trace
from tinyvit.study.subject import write_page

pytestmark = pytest.mark.browser


def own_code(path: str) -> None:
    """The page of a program that uses no model."""
    x = tv.tensor(np.arange(6, dtype=np.float32).reshape(2, 3), requires_grad=True)
    with trace(names={"x": x}) as recorded:
        F.softmax(x @ x.T).sum().backward()
    recorded.save_html(path)


def forward_only(path: str) -> None:
    """The page of a forward pass, which has no gradients."""
    with trace() as recorded:
        F.exp(tv.tensor([1.0, 2.0]))
    recorded.save_html(path)


PAGES: dict[str, Callable[[str], Any]] = {
    "a run": lambda path: write_page("digits", None, None, path, None),
    "an exercise": lambda path: write_page("digits", None, None, path, "gelu"),
    "an operation": lambda path: write_page("softmax", None, None, path, None),
    "an exercise of an operation": lambda path: write_page("layer_norm", None, None, path, "any"),
    "own code": own_code,
    "a forward pass": forward_only,
}

# The controls that can be seen now: one of each kind, since a timeline has hundreds that do the same.
CONTROLS = """() => {
  const found = new Map();
  for (const e of document.querySelectorAll("button, select, summary, input, a[href], [tabindex='0']")) {
    if (!e.checkVisibility() || !e.getClientRects().length) continue;
    const words = (e.getAttribute("aria-label") || e.textContent || "").replace(/[^a-z]+/gi, " ").split(" ");
    const name = e.id || e.dataset.view || e.dataset.pane || words.slice(0, 2).join(" ");
    const kind = [e.tagName, e.className.baseVal ?? e.className, e.closest("[id]").id, name].join("|");
    if (!found.has(kind)) found.set(kind, e);
  }
  return found;
}"""
KINDS = f"[...({CONTROLS})().keys()]"
# False if there is no control of this kind.
USE = f"""kind => {{
  const e = ({CONTROLS})().get(kind), bubbles = {{ bubbles: true }};
  if (!e) return false;
  if (e.tagName === "SELECT") {{
    e.selectedIndex = e.options.length - 1;
    e.dispatchEvent(new Event("change", bubbles));
  }} else if (e.tagName === "INPUT") {{
    e.value = e.type === "range" ? e.max : "soft";
    e.dispatchEvent(new Event("input", bubbles));
  }} else e.dispatchEvent(new MouseEvent("click", bubbles));
  return true;
}}"""
TABS = "[...document.querySelectorAll('#tabs [role=tab]')].filter(e => !e.hidden).map(e => e.dataset.view)"


def use_all(view: View, address: str) -> int:
    """Go to an address, and use each kind of control there; return how many kinds there are.

    What a control did (a part of the model that it opened, a text that it filtered by) is undone by going back to the
    address, as far as the address tells it, and else by loading the page again.
    """
    view.load(address)
    kinds = view.tab.evaluate(KINDS)
    for kind in kinds:
        view.follow(address)
        if not view.tab.evaluate(USE, kind):
            view.load(address)
            assert view.tab.evaluate(USE, kind), (address, kind, "is gone")
        assert view.complaints == [], (address, kind)
        shown = "#card" if view.tab.evaluate("document.body.dataset.view") == "walk" else "#view"
        phone_shows_the_graph = view.tab.evaluate("document.body.dataset.graph") == "open"
        shows_the_array = view.tab.evaluate("document.body.dataset.pane") == "array"
        assert phone_shows_the_graph or shows_the_array or view.text(shown).strip(), (address, kind, "empties the page")
    return len(kinds)


@pytest.mark.parametrize(
    ("kind", "size"), [*((kind, DESKTOP) for kind in PAGES), ("a run", PHONE), ("an operation", PHONE)]
)
def test_every_control_of_every_view_can_be_used(
    browser: Any, tmp_path: Path, kind: str, size: tuple[int, int]
) -> None:
    path = tmp_path / "page.html"
    PAGES[kind](str(path))
    with View(browser, path, size) as view:
        tabs = view.tab.evaluate(TABS)
        assert {"walk", "about"} <= set(tabs)
        for tab in tabs:
            assert use_all(view, f"#view={tab}") >= 4, tab


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("view_before", ["walk", "start", "about"])
def test_light_and_dark_show_the_same(browser: Any, tmp_path: Path, kind: str, view_before: str) -> None:
    path = tmp_path / "page.html"
    PAGES[kind](str(path))
    with View(browser, path, address=f"#view={view_before}") as view:
        before = view.text("body"), view.tab.evaluate("document.body.dataset.view"), view.tab.url
        for _ in range(2):
            view.tab.click("#theme")
            assert view.complaints == []
            assert (view.text("body"), view.tab.evaluate("document.body.dataset.view"), view.tab.url) == before
