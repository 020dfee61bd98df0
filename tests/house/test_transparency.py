"""Transparent pixels become what the guide to pictures says. (Tests of data run in copies without the documents.)"""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyvit.data import read_image
from tinyvit.errors import DataError

GUIDE = Path(__file__).parents[2] / "docs/guides/pictures.md"
ROWS = re.findall(r"^\| (RGBA|LA|P|RGB) \| ([\d ]+) \| (\d+) \| ([\d ]+) \|$", GUIDE.read_text("utf-8"), re.M)
INK = np.zeros((8, 8), np.uint8)
INK[2:6, 3:5] = 255


def _saved(folder: Path, image: Image.Image, **options: object) -> Path:
    image.save(folder / "image.png", **options)
    return folder / "image.png"


@pytest.mark.parametrize(("mode", "pixel", "alpha", "becomes"), ROWS, ids=[" ".join(row) for row in ROWS])
def test_transparency_becomes_what_the_guide_says(tmp_path: Path, mode, pixel, alpha, becomes) -> None:
    """A picture whose left half has the pixel of the guide, and whose right half is white and opaque."""
    values, options = [int(x) for x in pixel.split()], {}
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (4, 2), (*[255] * len(values), 255))
        image.paste((*values, int(alpha)), (0, 0, 2, 2))
    elif mode == "P":
        image = Image.new("P", (4, 2), 1)
        image.putpalette([*values, 255, 255, 255])
        image.paste(0, (0, 0, 2, 2))
        options = {"transparency": bytes([int(alpha), 255])}
    else:
        assert alpha == "0"
        image = Image.new("RGB", (4, 2), "white")
        image.paste(tuple(values), (0, 0, 2, 2))
        options = {"transparency": tuple(values)}
    read = read_image(_saved(tmp_path, image, **options), 1 if mode == "LA" else 3)
    assert read[:, :, 0].T.tolist() == [[int(x) for x in becomes.split()]] * 2
    assert read[:, :, 3].min() == 255


def test_the_guide_has_a_row_for_every_form_of_transparency() -> None:
    assert {mode for mode, *_ in ROWS} == {"RGBA", "LA", "P", "RGB"}


def test_the_way_out_that_the_guide_names_makes_ink_visible(tmp_path: Path) -> None:
    (way,) = re.findall(r"`(Image\.alpha_composite\(.*?)`", GUIDE.read_text("utf-8"))
    image = Image.merge("LA", [Image.new("L", (8, 8)), Image.fromarray(INK)])
    with pytest.raises(DataError, match="nothing is seen"):
        read_image(_saved(tmp_path, image), 3)
    read = read_image(_saved(tmp_path, eval(way, {"Image": Image, "image": image})), 1)
    assert np.array_equal(read[0], 255 - INK)
