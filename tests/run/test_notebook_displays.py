"""What notebooks show of recipes, trained models, results and runs that train."""

import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from tiny_run import isolate, tiny_recipe

import tinyvit as tv
from tinyvit.backend.html import text_html
from tinyvit.recipe import load_recipe, recipe_names
from tinyvit.run.display import Lines, Notebook, live_display
from tinyvit.run.loop import train


class Shown(HTMLParser):
    """The text of a page whose tags are closed in order; its texts, and the tags and styles that it uses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        assert not self.open
        assert len(page) < 30_000
        assert not re.search(
            r"color|background|script|onclick", page.replace("train.", "")
        )  # the page decides on colours

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_shows_what_it_changes_and_all_keys_folded_up(name: str) -> None:
    recipe = load_recipe(name)
    page = Shown(recipe._repr_html_().replace("data.colour", ""))
    assert recipe.about.title in page.texts[0]
    short = page.texts[: next(i for i, text in enumerate(page.texts) if text.startswith("all "))]
    assert ("data.name" in short, short[short.index("data.name") + 1]) == (True, recipe.data.name)
    assert "train.nesterov" not in short
    assert "train.nesterov" in page.texts
    assert "train.epochs" in short


def test_titles_and_names_are_escaped() -> None:
    recipe = load_recipe("digits").override(["about.title=<img src=x onerror='alert(1)'>\u202e"])
    text = recipe._repr_html_()
    assert "<img" not in text
    assert "&lt;img src=x onerror=&#x27;" in text
    assert "\u202e" not in text
    assert text_html("a&b\n<") == "a&amp;b\\n&lt;"


def test_a_trained_model_shows_its_size_classes_and_recipe() -> None:
    run = tv.load_run("digits")
    page = Shown(run._repr_html_().replace("data.colour", ""))
    shown = dict(zip(page.texts[1::2], page.texts[2::2], strict=False))
    assert shown["task"] == "classify"
    assert shown["model"] == f"ViT with {sum(p.size for p in run.model.parameters()):,} weights"
    assert shown["classes"] == "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert shown["images"] == "1 x 8 x 8"


def test_a_run_is_drawn_anew_as_it_trains_and_its_result_is_a_table(tmp_path, monkeypatch) -> None:
    isolate(tmp_path, monkeypatch)
    drawn: list[str] = []
    result = train(tiny_recipe("epochs=3", "validation=0.2"), "x", display=Notebook(drawn.append, every=0.0))
    shares = [float(re.search(r'value="([\d.]+)"', page)[1]) for page in drawn]  # type: ignore[index]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert len(drawn) > 3 * 6
    last = Shown(drawn[-1])
    assert "digits: 1,150 images to train on" in last.texts[0]
    assert [text for text in last.texts if re.fullmatch(r"epoch \d", text)] == ["epoch 1", "epoch 2", "epoch 3"]
    assert f"validation accuracy {100 * result.metrics[-1]['val_accuracy']:.2f} %" in last.texts
    assert any("measuring test batch" in page for page in drawn)
    table = Shown(result._repr_html_())
    assert str(result) == table.texts[0]
    assert f"{result.metrics[-1]['train_loss']:.4f}" in table.texts
    sparing: list[str] = []
    train(tiny_recipe("epochs=3"), "x", display=Notebook(sparing.append, every=1e9))
    assert len(sparing) == 5  # the beginning, each epoch, the end


def test_the_kernel_of_a_notebook_gets_a_display_in_the_cell(monkeypatch) -> None:
    updates: list[str] = []
    handle = SimpleNamespace(update=updates.append)
    shell = SimpleNamespace(kernel=object())
    shown = SimpleNamespace(HTML=str, display=lambda page, display_id: handle)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    display = live_display()
    assert isinstance(display, Notebook)
    display.draw("page")
    assert updates == ["page"]
    del shell.kernel
    assert isinstance(live_display(), Lines)  # IPython in a terminal, whose output goes into a pipe here
