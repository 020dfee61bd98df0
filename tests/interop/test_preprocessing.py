"""Images are resized and cropped as timm does it with Pillow, bit by bit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinyvit as tv
from tinyvit.data import Preprocessing, Resize, read_image
from tinyvit.errors import DataError

RECORDED = tv.load(Path(__file__).parent / "recorded" / "images.safetensors")


@pytest.mark.parametrize("key", [key for key in RECORDED if not key.startswith("picture/")])
def test_pixels_are_those_of_timm(key: str, tmp_path: Path) -> None:
    size, mode, interpolation, share = key.split("/")
    Image.fromarray(RECORDED[f"picture/{size}"]).save(tmp_path / "a.png")
    resize = Resize(interpolation, float(share), mode, (102, 128, 153) if mode == "border" else ())
    found = read_image(tmp_path / "a.png", 3, (12, 12), resize)
    np.testing.assert_array_equal(found, RECORDED[key], strict=True)


def test_a_grey_image_of_another_shape_is_prepared_too(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 9), 100, np.uint8)).save(tmp_path / "a.png")
    for mode in ("center", "squash", "border"):
        found = read_image(tmp_path / "a.png", 1, (8, 12), Resize("bilinear", 0.9, mode, (7,)))
        assert found.shape == (1, 8, 12)
        assert set(np.unique(found)) <= {0, 7, 100}


def test_its_state_is_restored() -> None:
    resize = Resize("lanczos", 0.9, "border", (51, 102))
    assert Resize.of_state(resize.state(), (0.2, 0.4)) == resize


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cubic",), "interpolation is 'cubic'; it must be one of nearest"),
        (("bicubic", 0.0), "crop_pct is 0.0; it must be a number from 0.05 to 1.5"),
        (("bicubic", "1"), "crop_pct is '1'"),
        (("bicubic", 1.0, "centre"), "crop_mode is 'centre'; it must be one of center"),
    ],
)
def test_wrong_rules_are_refused(arguments: tuple, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Resize(*arguments)


def test_means_and_deviations_must_belong_together() -> None:
    for mean, std in (((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((float("nan"),), (1.0,)), ((), ())):
        with pytest.raises(DataError, match="mean and std are"):
            Preprocessing(mean, std, Resize())
