"""An exported page in a real browser: digits that are drawn by mouse, finger and keyboard get their names.

Run apart with `python -m pytest -m browser`; needs Playwright, Chromium and clang (`apt install chromium clang lld`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accessibility import findings
from browser_view import DESKTOP, NARROW, PHONE, View
from javascript import clang

from tinyvit.data import load_dataset
from tinyvit.run.folder import load_run
from tinyvit.run.webpage import program_of, to_web

pytestmark = pytest.mark.browser

# Strokes in the drawing area, whose sides are 1.
ONE = [[(0.5, 0.15), (0.5, 0.85)]]
THREE = [[(0.3, 0.2), (0.55, 0.15), (0.7, 0.28), (0.5, 0.46), (0.7, 0.62), (0.6, 0.82), (0.3, 0.82)]]
FOUR = [[(0.35, 0.15), (0.25, 0.55), (0.75, 0.55)], [(0.6, 0.3), (0.6, 0.88)]]
ZERO = [
    [
        (0.5, 0.15),
        (0.3, 0.25),
        (0.25, 0.5),
        (0.3, 0.75),
        (0.5, 0.85),
        (0.7, 0.75),
        (0.75, 0.5),
        (0.7, 0.25),
        (0.5, 0.15),
    ]
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clang()
    folder = tmp_path_factory.mktemp("web")
    to_web(load_run("digits"), folder)
    return folder / "index.html"


def draw(view: View, strokes: Any) -> None:
    box = view.tab.locator("#canvas").bounding_box()
    for stroke in strokes:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        view.tab.mouse.move(*points[0])
        view.tab.mouse.down()
        for point in points[1:]:
            view.tab.mouse.move(*point, steps=8)
        view.tab.mouse.up()
    settle(view)


def settle(view: View) -> None:
    """Wait until the model has run on what is drawn."""
    view.tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def named(view: View) -> str:
    settle(view)
    return view.tab.locator("#verdict strong").inner_text()


def test_digits_that_are_drawn_get_their_names(browser: Any, page: Path) -> None:
    with View(browser, page) as view:
        assert view.tab.locator("#verdict strong").count() == 0
        assert view.tab.is_disabled("#clear")
        for digit, strokes in (("3", THREE), ("4", FOUR), ("0", ZERO), ("1", ONE)):
            draw(view, strokes)
            assert named(view) == digit
            shares = [float(x.split()[0]) for x in view.tab.locator("#bars .share").all_inner_texts()]
            assert len(shares) == 10
            assert abs(sum(shares) - 100) < 1
            assert int(np.argmax(shares)) == int(digit)
            assert view.tab.locator("#bars .best .name").inner_text() == digit
            view.tab.click("#clear")
            settle(view)
            assert view.tab.locator("#verdict strong").count() == 0
            assert view.tab.locator("#hint").is_visible()
        assert view.complaints == []
        assert view.requests == [page.as_uri()]


def test_numbers_on_the_page_are_those_of_the_program(browser: Any, page: Path) -> None:
    trained, data = load_run("digits"), load_dataset("digits", "test")
    x = data.normalize(data.images[:40])
    logits, *maps = program_of(trained)(x)
    with View(browser, page) as view:
        made = view.tab.evaluate(
            "given => given.map(planes => { const r = run({ planes: [planes], width: 8, height: 8 });"
            " return { logits: [...r.logits], maps: r.maps.map(m => [...m]) }; })",
            data.images[:40].reshape(40, 64).tolist(),
        )
        assert view.tab.evaluate("difference()") < 1e-5
        assert view.tab.is_hidden("#notice")
    assert np.abs(np.array([m["logits"] for m in made]) - logits).max() <= 1e-5 * np.abs(logits).max()
    for i, wanted in enumerate(maps):
        assert np.abs(np.array([m["maps"][i] for m in made]).reshape(wanted.shape) - wanted).max() <= 1e-5


def test_the_attention_of_each_head_is_shown_over_the_drawing(browser: Any, page: Path) -> None:
    with View(browser, page) as view:
        assert view.tab.locator("#maps canvas").count() == 16
        draw(view, THREE)
        rows = view.tab.evaluate("[...attentionOf(result.maps[1], about.maps[1], 2, null)]")
        whole = np.array(view.tab.evaluate("[...result.maps[1]]")).reshape(4, 16, 16)
        np.testing.assert_allclose(rows, whole[2].mean(axis=0), atol=1e-6)
        label = view.tab.locator("#maps canvas").nth(6).get_attribute("aria-label")
        most = int(np.argmax(rows))
        assert (
            label == f"Block 2, head 3: most, {100 * rows[most]:.1f} %, to row {most // 4 + 1}, column {most % 4 + 1}"
        )
        before = view.tab.evaluate("document.querySelectorAll('#maps canvas')[6].toDataURL()")
        view.tab.focus("#seen")
        view.press("ArrowRight", "ArrowDown", "ArrowDown")
        assert "row 3, column 1" in view.text("#reader")
        np.testing.assert_allclose(
            view.tab.evaluate("[...attentionOf(result.maps[1], about.maps[1], 2, patch)]"), whole[2, 8], atol=1e-6
        )
        assert view.tab.evaluate("document.querySelectorAll('#maps canvas')[6].toDataURL()") != before
        view.tab.click("#release")
        assert "mean" in view.text("#reader")
        view.tab.locator("#maps canvas").nth(3).click(position={"x": 4, "y": 4})
        assert "row 1, column 1" in view.text("#reader")
        assert view.complaints == []


def test_the_keyboard_alone_is_enough(browser: Any, page: Path) -> None:
    with View(browser, page) as view:
        for _ in range(10):
            view.press("Tab")
            if view.tab.evaluate("document.activeElement.id") == "canvas":
                break
        view.press(*["ArrowUp"] * 14, " ", *["ArrowDown"] * 28, " ")
        assert named(view) == "1"
        assert view.tab.locator("#cursor").is_visible()
        view.press("Control+z")
        settle(view)
        assert view.tab.is_disabled("#undo")
        view.press(" ", "ArrowLeft", " ", "Delete", " ", "ArrowUp")
        view.tab.click("#examples button")  # while the pen is down
        view.tab.focus("#canvas")
        view.press("ArrowLeft", "Delete")
        settle(view)
        assert view.tab.locator("#hint").is_visible()
        assert view.complaints == []


def test_a_finger_draws_and_does_not_scroll(browser: Any, page: Path) -> None:
    with View(browser, page, PHONE, has_touch=True, is_mobile=True) as view:
        box = view.tab.locator("#canvas").bounding_box()
        touch = view.context.new_cdp_session(view.tab)
        for kind, y in (
            ("touchStart", 0.15),
            *(("touchMove", 0.15 + 0.07 * i) for i in range(1, 11)),
            ("touchEnd", None),
        ):
            points = [] if y is None else [{"x": box["x"] + box["width"] / 2, "y": box["y"] + y * box["height"]}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        assert named(view) == "1"
        assert view.tab.evaluate("scrollY") == 0
        assert view.tab.locator("#canvas").bounding_box() == box  # what is shown meanwhile does not move the drawing
        assert view.tab.locator("#badge").is_visible()
        assert view.text("#badge").startswith("1 ·")


def test_test_images_and_pictures_take_the_place_of_a_drawing(browser: Any, page: Path, tmp_path: Path) -> None:
    from PIL import Image

    trained, data = load_run("digits"), load_dataset("digits", "test")
    with View(browser, page) as view:
        draw(view, ONE)
        assert view.tab.locator("#examples button").count() == 10
        view.tab.click("#examples button >> nth=7")
        settle(view)
        first = int(np.flatnonzero(data.labels == 7)[0])
        assert view.tab.locator("#examples button").nth(7).get_attribute("aria-pressed") == "true"
        assert "Its label in the test set is 7." in view.text("#verdict")
        np.testing.assert_array_equal(view.tab.evaluate("[...result.image.planes[0]]"), data.images[first].ravel())
        picture = tmp_path / "eight.png"
        eight = data.images[np.flatnonzero(data.labels == 8)[0], 0]
        Image.fromarray(np.kron(eight, np.ones((9, 9), np.uint8))).resize((80, 61)).save(picture)
        view.tab.set_input_files("#file", picture)
        view.tab.evaluate(
            "new Promise((done) => {"
            " const look = () => (shown && shown.picture ? done() : setTimeout(look, 20)); look(); })"
        )
        wanted = trained.predict(picture)[0][0]
        assert named(view) == wanted[0]
        share = float(view.tab.locator("#bars .best .share").inner_text().split()[0])
        assert abs(share - 100 * wanted[1]) <= 2
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"not a picture")
        view.tab.set_input_files("#file", broken)
        view.tab.wait_for_selector("#notice:not([hidden])")
        assert "broken.png cannot be read as a picture" in view.text("#notice")
        draw(view, THREE)
        assert named(view) == "3"
        assert view.complaints == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE, NARROW])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_in_light_and_dark(browser: Any, page: Path, size: tuple[int, int], scheme: str) -> None:
    with View(browser, page, size, color_scheme=scheme) as view:
        draw(view, THREE)
        assert view.tab.evaluate("document.documentElement.scrollWidth") == size[0]
        for _ in range(2):
            ground, ink = (
                view.tab.evaluate(f"getComputedStyle(document.querySelector('{s}')).{p}").strip("rgb()").split(", ")
                for s, p in ((".card", "backgroundColor"), (".card h2", "color"))
            )
            is_dark = int(ground[0]) < 60
            assert is_dark == (scheme == "dark")
            assert abs(int(ground[0]) - int(ink[0])) > 150
            view.tab.click("#theme")
            scheme = "light" if scheme == "dark" else "dark"
        small = view.tab.evaluate(
            "[...document.querySelectorAll('button')].filter(b => b.offsetParent && b.offsetHeight < 40).length"
        )
        assert small == 0


def test_a_model_that_computes_something_else_is_reported(browser: Any, page: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.html"
    text = page.read_text("utf-8")
    start = text.index('"logits":[') + len('"logits":[')
    changed.write_text(f"{text[:start]}99{text[text.index(',', start) :]}", "utf-8")
    with View(browser, changed) as view:
        assert "gives other numbers than where it was exported" in view.text("#notice")


@pytest.mark.parametrize(("scheme", "size"), [("light", DESKTOP), ("dark", PHONE)])
def test_the_page_is_accessible(browser: Any, page: Path, size: tuple[int, int], scheme: str) -> None:
    with View(browser, page, size, color_scheme=scheme, bypass_csp=True) as view:
        assert findings(view.tab) == []
        draw(view, THREE)
        assert view.tab.locator("#maps canvas").count() > 0
        assert findings(view.tab) == []
