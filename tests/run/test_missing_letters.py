"""Letters that the font of Matplotlib lacks are drawn without a warning; other warnings are shown as before."""

import warnings

import numpy as np
import pytest

from tinyvit.run.curves import draw_curves, own_style
from tinyvit.run.sheets import draw_sheet
from tinyvit.use import WordMaps, draw_word_maps

CHINESE = "\u5927\u72d7"


def curves(path) -> None:
    draw_curves(path, CHINESE, [{"epoch": 1, "train_loss": 1.0, "val_loss": 2.0, "val_accuracy": 0.5}])


def sheet(path) -> None:
    draw_sheet(path, CHINESE, {CHINESE: [np.zeros((1, 4, 4), np.uint8)]})


def word_maps(path) -> None:
    draw_word_maps(path, WordMaps(np.zeros((3, 4, 4), np.uint8), [CHINESE], np.ones((1, 2, 2))), CHINESE)


@pytest.mark.parametrize("draw", [curves, sheet, word_maps])
def test_letters_that_the_font_lacks_give_no_warning(tmp_path, draw) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        draw(tmp_path / "picture.png")
    assert [str(warning.message) for warning in seen] == []
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_other_warnings_are_shown_and_filters_are_put_back() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with own_style():
            warnings.warn("the axes are missing from the picture", UserWarning, stacklevel=1)
        warnings.warn("Glyph 22823 (x) missing from font(s) y.", UserWarning, stacklevel=1)
    assert len(seen) == 2
