"""axe-core finds nothing to mend on the pages, in light and dark, on large and small screens.

Run apart with `python -m pytest -m browser`; it needs Chromium (`apt install chromium`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accessibility import findings
from browser_view import DESKTOP, PHONE, View

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.study import trace
from tinyvit.study.exercises import exercise_page
from tinyvit.study.subject import write_page
from tinyvit.study.watch.report import draw_report

pytestmark = pytest.mark.browser

looks = pytest.mark.parametrize(("scheme", "size"), [("light", DESKTOP), ("dark", PHONE)], ids=["light", "dark"])
TABS = "[...document.querySelectorAll('#tabs [role=tab]')].filter(e => !e.hidden).map(e => e.dataset.view)"


def own_code(path: str) -> None:
    points = tv.tensor(np.ones((3, 2), np.float32))
    weight = tv.tensor(np.eye(2, 4, dtype=np.float32), requires_grad=True)
    with trace() as recorded:
        F.cross_entropy(points @ weight, np.array([0, 3, 1])).backward()
    recorded.save_html(path)


PAGES: dict[str, tuple[Callable[[str], Any], str]] = {
    "an operation": (lambda path: write_page("softmax", None, None, path), "softmax"),
    "an exercise": (lambda path: write_page("layer_norm", None, None, path, "any"), "layer_norm"),
    "homework": (lambda path: exercise_page(3, path), "head/linear"),
    "own code": (own_code, "matmul"),
}


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    write, key = PAGES[request.param]
    path = tmp_path_factory.mktemp("accessible") / "page.html"
    write(str(path))
    return path, key


@looks
def test_every_view_of_every_page_is_accessible(
    browser: Any, page: tuple[Path, str], size: tuple[int, int], scheme: str
) -> None:
    check_views(browser, *page, size, scheme)


@looks
def test_every_view_of_a_run_is_accessible(
    browser: Any, digits: tuple[Any, Path], size: tuple[int, int], scheme: str
) -> None:
    check_views(browser, digits[1], "blocks.0.attn/attention", size, scheme)


def check_views(browser: Any, path: Path, key: str, size: tuple[int, int], scheme: str) -> None:
    with View(browser, path, size, color_scheme=scheme, bypass_csp=True) as view:
        for tab in view.tab.evaluate(TABS):
            view.follow(f"#view={tab}")
            assert findings(view.tab) == [], tab
        view.go(key, backward=True)
        assert findings(view.tab) == []
        view.tab.click("#card .array >> nth=0")  # on a phone, this shows the array in place of the card
        assert findings(view.tab) == []


@looks
def test_the_page_of_a_monitored_run_is_accessible(
    browser: Any, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    norms = {"blocks.0.a.weight": 3.0, "blocks.0.b.weight": 0.3}
    line = {"step": 2, "losses": [2.0, 1.5], "gradients": norms, "updates": norms, "silent": {"blocks.0/relu": 0.5}}
    line |= {"entropy": {"blocks.0/attention": [0.5, 1.5]}, "spread": {"blocks.0/relu": 1.0}}
    draw_report(tmp_path / "page.html", tmp_path / "page.png", "a run", [line], ["a gradient is NaN"], steps=9)
    context = browser.new_context(
        bypass_csp=True, color_scheme=scheme, viewport=dict(zip(("width", "height"), size, strict=True))
    )
    tab = context.new_page()
    tab.goto((tmp_path / "page.html").as_uri())
    assert tab.locator("table").count() == 3
    assert findings(tab) == []
    context.close()


def test_what_is_not_accessible_is_found(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<title>x</title><img src='data:,'><p style='color:#aaa'>pale</p>", "utf-8")
    context = browser.new_context(offline=True)
    tab = context.new_page()
    tab.goto((tmp_path / "page.html").as_uri())
    assert {line.split(":")[0] for line in findings(tab)} >= {
        "critical image-alt",
        "serious color-contrast",
        "serious html-has-lang",
    }
    context.close()
