"""The study page in a real browser: it opens without errors, steps, explains numbers, and fits the screen.

Run apart with `python -m pytest -m browser`; it needs Chromium (`apt install chromium`) and Playwright.
"""

import re
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_view import DESKTOP, NARROW, PHONE, View, number_shown

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.study import trace
from tinyvit.study.exercises import exercise_page
from tinyvit.study.page.write import page_of
from tinyvit.study.record.records import Recording
from tinyvit.study.record.values import Value
from tinyvit.study.subject import about, study_run

pytestmark = pytest.mark.browser


def test_it_opens_without_errors_and_without_a_network(browser: Any, digits: tuple[Recording, Path]) -> None:
    for size in (DESKTOP, PHONE):
        with View(browser, digits[1], size) as view:
            assert view.complaints == []
            assert [url for url in view.requests if not url.startswith(("file:", "blob:"))] == []
            assert len(view.requests) == 1
            assert view.tab.locator(".tour").count() == 6
            view.tab.click(".tour >> nth=3")
            assert view.text("#card h2").startswith("attention")
            assert view.tab.locator("#why .chipcell").count() > 0
            assert view.complaints == []


def test_numbers_on_the_screen_are_numpys_bit_for_bit(browser: Any, digits: tuple[Recording, Path]) -> None:
    rng = np.random.default_rng(0)
    recording, path = digits
    with View(browser, path) as view:
        for _ in range(60):
            entry = recording.entries[rng.integers(len(recording.entries))]
            backward = bool(rng.integers(2))
            choices = [
                (f"d{entry.input_name(i)}" if backward else entry.input_name(i), value)
                for i, value in enumerate(entry.backward.outgoing if backward else entry.inputs)
                if isinstance(value, Value)
            ]
            name, value = choices[rng.integers(len(choices))]
            index = tuple(int(rng.integers(n)) for n in value.shape)
            if not index:
                continue
            view.go(entry.key, backward, name, index)
            assert np.float32(number_shown(view)) == value.array[index], (entry.key, name, index)
        assert view.complaints == []


def test_arrow_keys_in_a_picture_move_to_neighbouring_cells(browser: Any, digits: tuple[Recording, Path]) -> None:
    recording, path = digits
    x = recording["blocks.0.attn.qkv/linear"].inputs[0].array
    with View(browser, path) as view:
        view.go("blocks.0.attn.qkv/linear", False, "x", (0, 3, 5))
        view.tab.focus(".picture")
        for key, index in (("ArrowRight", (0, 3, 6)), ("ArrowDown", (0, 4, 6)), ("ArrowLeft", (0, 4, 5))):
            view.press(key)
            assert np.float32(number_shown(view)) == x[index]
            assert f"i={','.join(map(str, index))}" in view.tab.url
        assert "blocks.0.attn.qkv/linear" in view.tab.url


def test_all_steps_forward_and_back_again(browser: Any, digits: tuple[Recording, Path]) -> None:
    recording, path = digits
    steps = len(recording.entries) + len(recording.backwards)
    with View(browser, path, address=f"#op={recording.entries[0].key}") as view:
        start, seen = view.tab.url, set()
        for i in range(steps):
            live, formulas, words = view.tab.evaluate(
                "[document.querySelector('#live').textContent, document.querySelectorAll('#card .formula math').length,"
                " document.querySelector('#main').innerText]"
            )
            assert f"Step {i + 1} of {steps}" in live
            seen.add(live)
            assert formulas > 0
            assert "NaN" not in words
            assert "undefined" not in words
            view.press("ArrowRight")
        assert len(seen) == steps
        view.press(*["ArrowLeft"] * steps)
        assert "Step 1 of" in view.text("#live")
        assert view.tab.url.split("&")[0].startswith(start.split("#")[0])
        assert view.complaints == []


def test_the_keyboard_alone_is_enough(browser: Any, digits: tuple[Recording, Path]) -> None:
    with View(browser, digits[1], address="#op=add") as view:
        view.press("End")
        assert "backward" in view.text("#live")
        view.press("Home", "l")
        assert view.text("#card h2").startswith("cross entropy")
        view.press("b")
        assert "backward" in view.text("#card h2")
        view.press("/")
        view.tab.keyboard.type("blocks.2 softmax backward")
        view.press("Enter")
        assert view.text("#card h2").startswith("attention")
        assert "blocks.2.attn" in view.text("#card .place")
        before = view.text("#inspector-title")
        view.press("ArrowUp")
        assert view.text("#inspector-title") != before
        view.press("Enter")  # to the picture
        assert view.tab.evaluate("document.activeElement.className") == "picture"
        view.press("ArrowRight", "Enter")  # to the explanation
        assert view.tab.evaluate("document.activeElement.closest('#why') !== null")
        view.press("?")
        assert "shortcuts of a single key are on" in view.text("#view")
        view.press("Escape")
        assert view.tab.is_visible("#card")
        assert view.complaints == []


def test_the_terms_of_any_cell_lead_to_the_loss_or_to_a_leaf(browser: Any, digits: tuple[Recording, Path]) -> None:
    rng = np.random.default_rng(1)
    recording, path = digits
    ends = set()
    with View(browser, path) as view:
        for _ in range(5):
            backward = recording.backwards[rng.integers(len(recording.backwards))]
            i = next(i for i, v in enumerate(backward.outgoing) if v is not None)
            value = backward.outgoing[i]
            index = np.unravel_index(np.abs(value.array).argmax(), value.shape)
            view.go(backward.entry.key, True, f"d{backward.entry.input_name(i)}", index)
            for _ in range(400):
                assert view.tab.locator("#why .verdict.wrong").count() == 0, view.text("#why")
                chips = view.tab.locator("#why .chipcell")
                if chips.count() == 0:
                    ends.add(view.text("#why"))
                    break
                chips.nth(int(rng.integers(chips.count()))).click()
            else:
                pytest.fail("the terms lead on without an end")
        assert view.complaints == []
    known = ("slope of the loss", "a parameter", "A pixel", "came from outside", "A constant", "does not unfold")
    assert all(any(words in end for words in known) for end in ends), ends
    assert any("slope of the loss" in end or "a parameter" in end or "A pixel" in end for end in ends)


def test_the_terms_of_softmax_are_written_as_the_rule_writes_them(browser: Any, digits: tuple[Recording, Path]) -> None:
    with View(browser, digits[1]) as view:
        view.go("blocks.1.attn/attention", True, "ds", (0, 2, 1, 5))
        words = " ".join(view.text("#why .equation").split())
        assert re.fullmatch(
            r"ds\[0, 2, 1, 5\] = p\[0,2,1,5\] \S+ \u00d7 \(\s?dp\[0,2,1,5\] \S+ \u2212 r\[0,2,1,0\] \S+\s?\)", words
        ), words
        assert view.tab.locator("#why .verdict.agrees").count() == 1


def test_terms_skip_transposed_and_reshaped_arrays(browser: Any, digits: tuple[Recording, Path]) -> None:
    with View(browser, digits[1]) as view:
        view.go("head/linear", True, "dweight", (8, 12))
        assert re.search(r"rows\[0,8\]\s+\S+\s+\u00d7\s+x\[0,12\]", view.text("#why .terms"))
        view.go("cross_entropy", True, "dloss", ())
        assert view.tab.locator(".picture").count() == 0
        assert "comes from this 1" in view.text("#why")


def test_what_is_copied_is_what_is_shown(browser: Any, digits: tuple[Recording, Path]) -> None:
    recording, path = digits
    attention = recording["blocks.1.attn/attention"].backward
    with View(browser, path) as view:
        view.tab.evaluate("navigator.clipboard.writeText = async text => { window.copied = text }")
        for label, expected in (
            ("ds", None),
            ("dv", attention.outgoing[2].array),
            ("dout", attention.incoming[0].array),
        ):
            view.go("blocks.1.attn/attention", True, label, (0, 2, 1, 5))
            view.tab.click("text=copy as Python")
            first, last = view.tab.evaluate("copied").split("\n")
            assert first == 'from tinyvit.study.subject import study_run; trace = study_run("digits").trace'.replace(
                '"', "'"
            )
            assert np.float32(number_shown(view)) == eval(last, {"trace": recording})
            view.tab.click("text=copy as NumPy")
            array = eval(view.tab.evaluate("copied"), {"np": np})
            assert array.shape == (1, 4, 16, 16)
            assert expected is None or array.tobytes() == expected.tobytes()


def test_an_exercise_marks_its_wrong_rule_only_when_asked(browser: Any, tmp_path: Path) -> None:
    subject = study_run(plant="attention")
    key = subject.trace.mistake.partition(":")[0]
    contents = about(subject) | {"exercise": subject.trace.mistake}
    (tmp_path / "page.html").write_text(page_of(subject.trace, contents), "utf-8")
    with View(browser, tmp_path / "page.html", address=f"#op={key}&dir=backward") as view:
        assert not view.tab.is_visible("#card .summary")
        assert view.tab.locator("#track .wrong, #track [aria-label*=wrong]").count() == 0
        assert "wrong" not in view.text("#live")
        view.tab.fill("#search", "wrong")
        assert view.text("#found") == "no match"
        view.tab.fill("#search", "")
        assert view.tab.locator("text=give up").count() == 0  # a claim comes first
        view.tab.evaluate("location.hash = 'op=head/linear&dir=backward'")
        view.tab.click("text=this rule is wrong")
        view.tab.click("text=give up: show the verdicts")
        view.go(key, backward=True)
        assert "the gradient of" in view.text("#card .summary.wrong")
        assert view.tab.locator("#card tr.wrong").count() > 0
        assert "the sum over the keys is not subtracted" in view.text("#card .exercise")
        red = view.tab.eval_on_selector_all(
            "#track .cell.wrong", "cells => cells.map(c => c.getAttribute('aria-label'))"
        )
        assert red == [f"backward of {key}, check: wrong"]
        view.tab.click("#tabs [data-view=health]")
        assert f"1 of {len(subject.trace.backwards)} gradient rules are wrong" in view.text("#view")


def test_an_exercise_takes_claims_before_it_shows_verdicts(browser: Any, tmp_path: Path) -> None:
    subject = study_run(plant="gelu")
    key = subject.trace.mistake.partition(":")[0]
    contents = about(subject) | {"exercise": subject.trace.mistake}
    (tmp_path / "page.html").write_text(page_of(subject.trace, contents), "utf-8")
    with View(browser, tmp_path / "page.html", address="#op=head/linear&dir=backward") as view:
        view.tab.click("text=this rule is wrong")
        assert "No, this rule is right (1 claim so far)." in view.text("#card .exercise")
        assert not view.tab.is_visible("#card .summary")
        view.tab.evaluate("key => (location.hash = `op=${key}&dir=backward`)", key)
        view.tab.wait_for_timeout(200)
        assert "Compare rule and finite difference" in view.text("#card .exercise")
        view.tab.click("text=this rule is wrong")
        assert view.text("#card .exercise").startswith("Found with 2 claims. The mistake: ")
        assert "the gradient of" in view.text("#card .summary.wrong")


def test_homework_asks_for_the_command_that_judges(browser: Any, tmp_path: Path) -> None:
    exercise_page(3, str(tmp_path / "page.html"))
    with View(browser, tmp_path / "page.html", address="#op=head/linear&dir=backward") as view:
        assert "tinyvit study --answer 3 head/linear" in view.text("#card .exercise")
        assert view.tab.locator("#card .exercise button").count() == 0
        assert not view.tab.is_visible("#card .summary")
        view.tab.click("#tabs [data-view=health]")
        assert view.tab.locator("#view .wrong:visible").count() == 0
        assert view.complaints == []


def test_an_array_that_does_not_fit_is_reported_as_missing(browser: Any, tmp_path: Path) -> None:
    with trace() as recorded:
        x = tv.tensor(np.ones((1300, 1000), np.float32), requires_grad=True)
        (x * 2).sum().backward()
    recorded.save_html(tmp_path / "page.html")
    with View(browser, tmp_path / "page.html", address="#op=multiply") as view:
        assert "statistics only" in view.text("#card")
        assert "did not fit" in view.text("#inspector")
        view.press(*["ArrowRight"] * 4)
        assert view.complaints == []


def test_damaged_numbers_are_noticed(browser: Any, digits: tuple[Recording, Path], tmp_path: Path) -> None:
    text = digits[1].read_text("utf-8")
    at = text.index('id="blob-f4">') + 100_000
    swapped = "A" if text[at] != "A" else "B"
    (tmp_path / "page.html").write_text(text[:at] + swapped + text[at + 1 :], "utf-8")
    context = browser.new_context()
    tab = context.new_page()
    tab.goto((tmp_path / "page.html").as_uri())
    tab.wait_for_selector("#notice:not([hidden])")
    assert "damaged" in tab.inner_text("#notice")
    context.close()


def test_the_first_nan_is_located_on_the_page(browser: Any, tmp_path: Path) -> None:
    x = tv.tensor(np.array([0.0, 1.0], np.float32), requires_grad=True)
    with np.errstate(all="ignore"), trace() as recorded:
        F.sqrt(x).sum().backward()
    recorded.save_html(tmp_path / "page.html")
    with View(browser, tmp_path / "page.html", address="#view=health") as view:
        assert "The first NaN or infinity arises in sqrt, backward" in view.text("#view")
        view.tab.click("#view .summary.wrong button")
        assert "the first NaN or infinity arises here" in view.text("#card")
        assert view.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE, NARROW, (640, 400)])
def test_no_page_is_wider_than_its_screen(
    browser: Any, digits: tuple[Recording, Path], size: tuple[int, int], scheme: str
) -> None:
    with View(browser, digits[1], size, color_scheme=scheme, reduced_motion="reduce") as view:
        for place in (
            "#op=blocks.1.attn/attention&dir=backward&a=ds&i=0,1,2,3",
            "#op=patch_embed.stem.0/conv2d&dir=backward",
            "#op=cross_entropy&dir=backward",
            *("#view=attention", "#view=health", "#view=fused", "#view=quiz", "#view=about"),
        ):
            view.tab.evaluate("link => { location.hash = link }", place)
            view.tab.wait_for_timeout(30)
            assert view.tab.evaluate("document.documentElement.scrollWidth") <= size[0], place
        background = view.tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
        assert view.complaints == []


def test_on_a_phone_targets_are_large_and_an_array_opens(browser: Any, digits: tuple[Recording, Path]) -> None:
    with View(browser, digits[1], PHONE, has_touch=True, is_mobile=True) as view:
        view.go("blocks.0.attn/attention", True)
        small = view.tab.evaluate(
            "[...document.querySelectorAll('.controls button, #panes button, #tabs button, #card .array')].filter(b =>"
            " b.offsetParent && b.getBoundingClientRect().height < 43.5).map(b => b.outerHTML.slice(0, 60))"
        )
        assert small == []
        view.tab.tap("#model")
        view.tab.tap("#graph .node >> nth=0")
        assert "patch_embed" in view.text("#card .place")
        assert not view.tab.is_visible("#graph")
        view.go("blocks.0.attn/attention", True)
        view.tab.tap("#card .array >> nth=2")
        assert view.tab.is_visible(".picture")
        assert not view.tab.is_visible("#card")


def test_controls_have_names_and_attention_is_drawn_on_the_image(browser: Any, digits: tuple[Recording, Path]) -> None:
    with View(browser, digits[1]) as view:
        view.go("blocks.1.norm1/layer_norm", True)
        nameless = view.tab.evaluate(
            "[...document.querySelectorAll('button, input, [role=img], [tabindex]')].filter(e => e.offsetParent &&"
            " !(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label') || e.title)).length"
        )
        assert nameless == 0
        view.tab.click("#tabs [data-view=attention]")
        assert view.tab.locator(".overlay").count() == 16
        assert "Σ 1" in view.text(".heads")
        view.tab.click("#tabs [data-view=quiz]")
        view.tab.locator(".question >> nth=0 >> .tool >> nth=1").click()
        assert view.tab.is_visible(".question .answer >> nth=0")


def test_a_link_to_an_unknown_operation_falls_back_with_a_notice(browser: Any, digits: tuple[Recording, Path]) -> None:
    with View(browser, digits[1], address="#op=blocks.9.attn/attention") as view:
        assert "There is no blocks.9.attn/attention" in view.text("#notice")
        assert view.text("#card h2")


def test_every_key_steps_on_and_the_times_are_reported(
    browser: Any, digits: tuple[Recording, Path], record_property: Any
) -> None:
    """How long opening and stepping take depends on the machine, so it is reported and not tested."""
    opened = []
    for _ in range(4):
        began = time.perf_counter()
        with View(browser, digits[1], address="#op=patch_embed.stem.0/conv2d") as view:
            opened.append(time.perf_counter() - began)
            places, steps = view.tab.evaluate(
                "() => { const times = [], seen = new Set();"
                " for (let i = 0; i < 95; i++) { const t = performance.now();"
                " document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));"
                " document.body.offsetHeight;"
                " times.push(performance.now() - t); seen.add(location.hash); }"
                " return [seen.size, times.sort((a, b) => a - b)]; }"
            )
    record_property("seconds to open", statistics.median(opened[1:]))
    record_property("milliseconds of a step, median and slowest", (steps[47], steps[-1]))
    print(
        f"opens in {statistics.median(opened[1:]):.2f} s; a step takes {steps[47]:.1f} ms, at most {steps[-1]:.1f} ms"
    )
    assert places == 95
