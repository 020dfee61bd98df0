"""Folders that timm and transformers wrote, loaded here: logits and gradients are those that the libraries computed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.interop.configs import crop_share
from tinyvit.interop.names import FAMILIES, translate

RECORDED = Path(__file__).parent / "recorded"
FOLDERS = sorted(path.parent for path in RECORDED.glob("*/expected.safetensors"))


def expected_of(folder: Path) -> dict[str, Any]:
    return tv.load(folder / "expected.safetensors")


def place(folder: Path) -> Path:
    return folder / "model.npz" if folder.name == "google" else folder


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_logits_and_gradients_are_those_of_the_library(folder: Path) -> None:
    expected, model = expected_of(folder), tv.models.from_pretrained(place(folder))
    logits = model(expected["images"])
    np.testing.assert_allclose(logits.numpy(), expected["logits"], rtol=0, atol=1e-5, strict=True)
    (logits * tv.tensor(expected["weights"])).sum().backward()
    own = {name: p.grad.numpy() for name, p in model.named_parameters()}
    theirs = {name.removeprefix("gradient/"): g for name, g in expected.items() if name.startswith("gradient/")}
    for name, gradient in theirs.items():
        np.testing.assert_allclose(own[name], gradient, rtol=0, atol=1e-4 * max(1e-3, abs(gradient).max()))
    assert not theirs or theirs.keys() == own.keys()


def test_what_is_recorded_covers_every_family() -> None:
    assert {folder.name.partition("-")[0] for folder in FOLDERS} == {"timm", "hf", "google"}
    assert sum(path.stat().st_size for path in RECORDED.rglob("*") if path.is_file()) <= 300_000


def test_names_of_classes_and_preprocessing_come_with_the_weights() -> None:
    model = tv.models.from_pretrained(RECORDED / "hf-vit")
    assert model.labels == ("cat", "dog", "crane")
    assert model.preprocessing is not None
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)
    assert model.preprocessing.resize.state() == ("bilinear", 1.0, "squash")
    resize = tv.models.from_pretrained(RECORDED / "hf-dinov2").preprocessing.resize
    assert resize.state() == ("bicubic", 16 / 18, "center")
    assert int(16 / resize.crop_pct) == 18


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_another_number_of_classes_gives_a_new_head_and_nothing_else(folder: Path) -> None:
    whole = tv.models.from_pretrained(place(folder)).state_dict()
    other = tv.models.from_pretrained(place(folder), num_classes=7)
    assert other.num_classes == 7
    assert not other.labels
    for name, array in other.state_dict().items():
        if name.startswith(("head.", "head_dist.")):
            assert len(array) == 7
            assert array.any() == name.endswith("weight")
        else:
            np.testing.assert_array_equal(array, whole[name])
    assert tv.models.from_pretrained(place(folder), num_classes=0).num_classes == 0


def test_positions_of_an_npz_file_are_resampled_as_timm_does() -> None:
    model = tv.models.from_pretrained(RECORDED / "google" / "model.npz", image_size=24)
    np.testing.assert_allclose(model.pos_embed.numpy(), expected_of(RECORDED / "google")["positions"], atol=1e-5)


@pytest.mark.parametrize("size", [8, 24, (16, 32)], ids=str)
def test_a_model_of_another_size_is_that_of_set_input_size(size: Any) -> None:
    at_once = tv.models.from_pretrained(RECORDED / "timm-plain", image_size=size)
    later = tv.models.from_pretrained(RECORDED / "timm-plain")
    later.set_input_size(size)
    assert at_once.patch_embed.image_size == later.patch_embed.image_size
    for name, array in later.state_dict().items():
        np.testing.assert_array_equal(array, at_once.state_dict()[name])
    images = np.zeros((1, 3, *at_once.patch_embed.image_size), np.float32)
    np.testing.assert_array_equal(at_once(images).numpy(), later(images).numpy())


def test_the_tables_of_names_have_no_row_twice() -> None:
    for family in FAMILIES.values():
        names = [theirs for theirs, _ in family.rows]
        assert len(names) == len(set(names)), family.name


def test_an_unknown_name_stays_unknown() -> None:
    found = translate(["vit.encoder.layer.x.output.dense.weight", "pooler.dense.bias", "blocks.0"], FAMILIES["vit"])
    assert found.unknown == ["vit.encoder.layer.x.output.dense.weight", "blocks.0"]
    assert found.left_out == ["pooler.dense.bias"]


def test_the_share_of_a_crop_gives_back_the_size_of_the_resized_image() -> None:
    sizes = [(target, side) for target in range(8, 600, 7) for side in range(target, target + 90)]
    assert all(math.floor(target / crop_share(target, side)) == side for target, side in sizes)
    assert any(math.floor(target / (target / side)) != side for target, side in sizes)
