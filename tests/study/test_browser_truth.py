"""What the study page shows in a browser, compared with the trace: terms, colours, tokens, verdicts, links.

Run apart with `python -m pytest -m browser`, like test_browser.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_view import DESKTOP, PHONE, View, number_shown

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.study import trace
from tinyvit.study.page.write import page_of
from tinyvit.study.record.records import Recording
from tinyvit.study.subject import study_operation

pytestmark = pytest.mark.browser


def numbers(text: str) -> list[float]:
    return [float(x.replace("\u2212", "-")) for x in re.findall(r"[-\u2212]?\d+(?:\.\d+)?(?:e[-\u2212]?\d+)?", text)]


def opened(browser: Any, folder: Path, recorded: Recording, address: str = "", change: Any = None) -> View:
    """The page of a trace, opened; `change` may falsify its document first."""
    text = page_of(recorded)
    if change is not None:
        found = re.search(r'(<script type="application/json" id="trace">)(.*?)(</script>)', text, re.DOTALL)
        assert found
        document = json.loads(found[2])
        change(document)
        text = text[: found.start(2)] + json.dumps(document).replace("<", "\\u003c") + text[found.end(2) :]
    (folder / "page.html").write_text(text, "utf-8")
    return View(browser, folder / "page.html", address=address)


# Terms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("falsified", [False, True])
def test_terms_that_do_not_give_the_recorded_number_are_reported(browser: Any, tmp_path: Path, falsified: bool) -> None:
    """The page must notice a change of each kind of step."""
    x = tv.tensor(np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32), requires_grad=True)
    with tv.use_kernels("numpy"), trace() as recorded:
        ((x @ np.ones((4, 2), np.float32)).sum() + (x - 2.0 * x).mean() + F.softmax(x)[0, 0]).backward()
    places = [("matmul", "z", "0,1"), ("subtract", "z", "1,1"), ("mean", "y", ""), ("sum", "y", "")]

    def change(document: dict[str, Any]) -> None:
        for op in document["ops"]:
            for step in op["steps"][0]:
                kind = step["l"][0]
                if kind == "each" and step["l"][1] == "-":
                    step["l"][1] = "+"
                if kind == "reduce" and step["l"][1] == "mean":
                    step["l"][1] = "sum"
                elif kind == "reduce" and step["l"][1] == "sum":
                    step["l"][1] = "mean"
                if kind == "matmul":
                    step["o"][0]["v"], step["o"][1]["v"] = (step["o"][0]["v"],) * 2

    view = opened(browser, tmp_path, recorded, change=change if falsified else None)
    with view:
        for op, a, index in places:
            if falsified and op == "matmul":
                continue  # the changed operands have shapes that do not fit
            view.tab.evaluate("link => { location.hash = link }", f"#op={op}&a={a}" + (f"&i={index}" if index else ""))
            view.tab.wait_for_timeout(60)
            assert view.tab.locator("#why .verdict.wrong").count() == int(falsified), (op, view.text("#why"))
            assert view.tab.locator("#why .verdict.agrees").count() == int(not falsified), (op, view.text("#why"))


@pytest.mark.parametrize("name", ["attention", "col2im", "where"])
def test_terms_of_correct_operations_are_never_reported(browser: Any, tmp_path: Path, name: str) -> None:
    with opened(browser, tmp_path, study_operation(name)) as view:
        for link in view.tab.evaluate(
            "[...document.querySelectorAll('#track .cell')].slice(0, 4).map(cell => { cell.click();"
            " return location.hash; })"
        ):
            view.tab.evaluate("link => { location.hash = link }", link)
            view.tab.wait_for_timeout(40)
            for _ in range(5):
                view.press("ArrowUp")
                assert view.tab.locator("#why .verdict.wrong").count() == 0, (link, view.text("#why"))
        assert view.complaints == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_terms_in_16_bits_may_differ_by_their_own_rounding(browser: Any, tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = tv.tensor(rng.standard_normal((5, 30)).astype(np.float32)).to(dtype).detach()
    with tv.use_kernels("numpy"), trace() as recorded:
        x @ x.T
    with opened(browser, tmp_path, recorded) as view:
        for i in range(5):
            view.go("matmul", False, "z", (i, 4 - i))
            assert view.tab.locator("#why .verdict.wrong").count() == 0, view.text("#why")


def test_terms_have_the_names_of_the_rule_and_can_be_followed(browser: Any, digits: tuple[Recording, Path]) -> None:
    recording, path = digits
    with View(browser, path) as view:
        view.go("blocks.1.attn/attention", True, "dp", (0, 3, 10, 1))
        for chip in view.tab.locator("#why .terms li").all_inner_texts():
            assert re.search(r"dout\[0,3,10,\d+\][\s\S]*v\[0,3,1,\d+\]", chip), chip
        terms = [numbers(t.split("=")[-1])[-1] for t in view.tab.locator("#why .terms li").all_inner_texts()]
        assert np.all(np.diff(np.abs(terms)) <= 0)  # the largest first
        rest = numbers(view.text("#why .rest").partition("together")[2])[-1]
        attention = recording["blocks.1.attn/attention"]
        dout, v = attention.backward.incoming[0].array[0, 3, 10], attention.inputs[2].array[0, 3, 1]
        assert sum(terms) + rest == pytest.approx(float(dout @ v), rel=1e-3)
        assert np.sort(np.abs(dout * v))[::-1][:8] == pytest.approx(np.abs(terms), rel=1e-3)
        view.tab.locator("#why .chipcell").nth(1).click()
        assert view.text("#card .place") == "blocks.1.attn"


def test_a_gather_whose_operand_did_not_fit_causes_no_error(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyvit.study.page.pack.MAX_VALUES", 1200)
    rng = np.random.default_rng(0)
    x = tv.tensor(rng.standard_normal((50, 10)).astype(np.float32), requires_grad=True)
    with trace() as recorded:
        ((x * 1.0)[rng.integers(-50, 0, 50)] * 1.0).sum().backward()
    with opened(browser, tmp_path, recorded) as view:
        for _ in range(8):
            view.press("ArrowRight")
        view.go("advanced_index", False, "y")
        assert view.complaints == []


# Views -------------------------------------------------------------------------------------------------------------


def test_red_is_positive_and_each_matrix_has_its_own_picture(browser: Any, tmp_path: Path) -> None:
    x = np.zeros((2, 2, 2), np.float32)
    x[0, 0, 1], x[1, 1, 0] = 1.0, -2.0
    with trace() as recorded:
        tv.tensor(x, requires_grad=True) * 1.0
    read = (
        "() => { const c = document.querySelector('.picture canvas');"
        " return [...c.getContext('2d').getImageData(0, 0, 2, 2).data]; }"
    )
    with opened(browser, tmp_path, recorded, "#op=multiply&a=x&i=0,0,0") as view:
        first = np.array(view.tab.evaluate(read)).reshape(2, 2, 4)
        view.go("multiply", False, "x", (1, 0, 0))
        second = np.array(view.tab.evaluate(read)).reshape(2, 2, 4)
        assert numbers(view.text(".legend")) == [-2, 2]
        assert "image 1" in view.text(".slider") or "1" in view.tab.input_value(".slider input")
    red, blue = first[0, 1], second[1, 0]
    assert red[0] > red[2] + 20
    assert blue[2] > blue[0] + 60
    assert (first[1] == first[0, 0]).all()  # zero has the background colour


def test_the_table_shows_the_numbers_around_the_cell(browser: Any, digits: tuple[Recording, Path]) -> None:
    recording, path = digits
    x = recording["blocks.0.attn.qkv/linear"].inputs[0].array
    with View(browser, path) as view:
        view.go("blocks.0.attn.qkv/linear", False, "x", (0, 6, 30))
        shown = np.array([numbers(text) for text in view.tab.locator(".numbers tbody td").all_inner_texts()]).reshape(
            5, 5
        )
        np.testing.assert_allclose(shown, x[0, 4:9, 28:33], rtol=6e-3)
        assert "token 6 (row 1, column 2)" in view.text("#pointed")
        assert view.text(".axes") == "\u2193 token, \u2192 channel"


def test_attention_on_the_image_belongs_to_its_head_and_query(browser: Any, digits: tuple[Recording, Path]) -> None:
    recording, path = digits
    with View(browser, path, address="#view=attention&show=dp&query=6") as view:
        assert "token 6 (row 1, column 2)" in view.text("#view .slider")
        assert view.tab.locator("#view [aria-pressed=true]").inner_text() == "dA"
        dp = next(s for s in recording["blocks.2.attn/attention"].backward.narration().steps if s.name == "dp").value
        sums = [
            numbers(t.split("\u03a3")[1])[0]
            for t in view.tab.locator(".layer >> nth=2 >> figcaption").all_inner_texts()
        ]
        np.testing.assert_allclose(sums, dp[0, :, 6].sum(axis=-1), rtol=6e-3)
        view.tab.locator(".layer >> nth=2 >> figcaption button >> nth=1").click()
        assert np.float32(number_shown(view)) == dp[0, 1, 6, 0]


def test_the_start_view_shows_the_probabilities(browser: Any, digits: tuple[Recording, Path]) -> None:
    recording, path = digits
    loss = recording["cross_entropy"]
    logits = loss.inputs[0].array[0].astype(np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    target = int(loss.params["ids"][0])
    for size in (DESKTOP, PHONE):
        with View(browser, path, size) as view:
            rows = view.tab.locator(".says tr").all_inner_texts()
            assert [numbers(row)[-1] for row in rows] == pytest.approx(list(100 * p), abs=0.06)
            assert [i for i, row in enumerate(rows) if "\u2190" in row] == [target]
            width = view.tab.evaluate(f"document.querySelectorAll('.says i')[{target}].getBoundingClientRect().width")
            assert width > 20  # the bars are there on a phone too


def test_a_quiz_marks_the_right_answer(browser: Any, digits: tuple[Recording, Path]) -> None:
    recording, path = digits
    gradient = recording["cross_entropy"].backward.outgoing[0].array[0]
    target = int(recording["cross_entropy"].params["ids"][0])
    with View(browser, path, address="#view=quiz") as view:
        first = view.tab.locator(".question").filter(has_text=f"class {target}").first
        first.locator(".tool").nth(2).click()
        assert first.locator(".tool.right").inner_text() == ("negative" if gradient[target] < 0 else "positive")
        row = view.tab.locator(".question").filter(has_text="sum of a row of ds").first
        row.locator(".tool").nth(0).click()
        assert row.locator(".tool.right").inner_text() == "0"


def test_health_claims_only_what_was_checked(browser: Any, digits: tuple[Recording, Path], tmp_path: Path) -> None:
    recording, path = digits
    with View(browser, path, address="#view=health") as view:
        rules = len(recording.backwards)
        assert f"{rules} of {rules} gradient rules agree" in view.text(".summary.agrees >> nth=0")
        name = "blocks.2.mlp.fc1.weight"
        cells = view.tab.locator(".bars tr").filter(has_text=name).inner_text()
        norm = recording.gradients[name].statistics.norm
        weight = recording["blocks.2.mlp.fc1/linear"].inputs[1].statistics.norm
        assert numbers(cells.removeprefix(name))[-2:] == pytest.approx([norm, norm / weight], rel=0.03)
        peak = max(recording.held)
        assert f"peak {peak / 1024:.0f} KB" in view.text("#view figure") or f"peak {peak / 2**20:.1f} MB" in view.text(
            "#view figure"
        )
    with trace(max_bytes=100) as recorded:
        (tv.tensor(np.ones((30, 10)), requires_grad=True) * 2).sum().backward()
    with opened(browser, tmp_path, recorded, "#view=health") as view:
        assert "No gradient rule could be verified; 2 could not be checked" in view.text(".summary.unclear")
    x = tv.tensor(np.array([np.nan, 1.0]), requires_grad=True)
    with trace() as recorded:
        (x * x).sum().backward()
    with opened(browser, tmp_path, recorded, "#view=health") as view:
        assert "came from outside, as the input x of multiply, forward" in view.text(".summary.wrong")
        assert "NaN" in view.text(".bars")
        view.tab.click(".summary.wrong button")
        assert "norm NaN" in view.text("#inspector .stats")
        assert view.complaints == []


# Addresses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "word", "becomes"),
    [
        ("#view=foo", "There is no view foo.", "#op="),
        ("#view=constructor", "There is no view constructor.", "#op="),
        ("#view=__proto__", "There is no view __proto__.", "#op="),
        ("#op=blocks.1", "", "#op=blocks.1"),
        ("#op=blocks.2.attn/nothing", "of blocks.2.attn", "#op=blocks.2.attn"),
        ("#op=head/linear&a=x&i=0,99", "[0,99] is not in x, whose shape is 1 \u00d7 64", "#op=head/linear&a=x"),
    ],
)
def test_a_bad_link_falls_back_to_something_near_with_a_notice(
    browser: Any,
    digits: tuple[Recording, Path],
    address: str,
    word: str,
    becomes: str,
) -> None:
    for later in (False, True):  # as the first address, or from an open page
        with View(browser, digits[1], address="" if later else address) as view:
            if later:
                view.tab.evaluate("link => { location.hash = link }", address)
                view.tab.wait_for_timeout(80)
            shown = view.tab.inner_text("#notice") if view.tab.is_visible("#notice") else ""
            assert word in shown
            assert bool(shown) == bool(word)
            if word:
                assert view.tab.evaluate("location.hash").startswith(becomes)
                assert "99" not in view.tab.evaluate("location.hash")
            assert view.text("#card .place").startswith(becomes.removeprefix("#op=").partition("/")[0])
            assert view.complaints == []


def test_the_last_step_keeps_its_card_and_other_views_ignore_arrow_keys(
    browser: Any, digits: tuple[Recording, Path]
) -> None:
    with View(browser, digits[1]) as view:
        view.press("End")
        view.tab.locator("#card .array").first.click()
        before = view.tab.url
        view.press("ArrowRight")
        assert view.tab.url == before
        view.press(" ")  # play starts again from the first operation
        view.tab.wait_for_function("document.querySelector('#where').textContent.startsWith('1 of')")
        view.press(" ")
        view.tab.click("#tabs [data-view=attention]")
        view.tab.click("#view .tool >> text=dS")
        view.press("ArrowRight")
        assert view.tab.is_visible(".layer >> nth=0")
        assert "show=ds" in view.tab.url
