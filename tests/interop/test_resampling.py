"""Resampled positions and patch embeddings: equal to timm's, and to what a resizing must be."""

from pathlib import Path

import numpy as np
import pytest
from peers import peer

import tinyvit as tv
from tinyvit.nn.resample import resample_patches, resample_positions, resize_matrix

RECORDED = tv.load(Path(__file__).parent / "recorded" / "resampling.safetensors")
SIZES = [(4, 4), (3, 7), (7, 3), (16, 14), (14, 16), (5, 37), (37, 5), (1, 4), (6, 1), (2, 3)]


@pytest.mark.parametrize("key", [key for key in RECORDED if key.startswith("positions/")])
def test_positions_are_those_of_timm(key: str) -> None:
    rows, columns = map(int, key.partition("/")[2].split("x"))
    found = resample_positions(RECORDED["positions"], (3, 4), (rows, columns), 2)
    np.testing.assert_allclose(found, RECORDED[key], rtol=0, atol=1e-5, strict=True)


@pytest.mark.parametrize("key", [key for key in RECORDED if key.startswith("patches/")])
def test_patch_embeddings_are_those_of_timm(key: str) -> None:
    rows, columns = map(int, key.partition("/")[2].split("x"))
    found = resample_patches(RECORDED["patches"], (rows, columns))
    np.testing.assert_allclose(found, RECORDED[key], rtol=0, atol=1e-5, strict=True)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_a_resizing_keeps_constants_and_is_symmetric(old: int, new: int, interpolation: str) -> None:
    matrix = resize_matrix(old, new, interpolation)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)
    if old == new:
        np.testing.assert_allclose(matrix, np.eye(new), atol=1e-12)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_the_matrix_is_that_of_torch(old: int, new: int) -> None:
    torch = peer("torch")
    basis = torch.eye(old, dtype=torch.float64).reshape(1, old, old, 1).repeat(1, 1, 1, 2)
    for interpolation, antialias in (("bicubic", True), ("bilinear", False)):
        resized = torch.nn.functional.interpolate(basis, size=(new, 2), mode=interpolation, antialias=antialias)
        np.testing.assert_allclose(resize_matrix(old, new, interpolation), resized[0, :, :, 0].numpy().T, atol=1e-7)


def test_a_larger_patch_embedding_gives_the_same_tokens_for_larger_patches() -> None:
    """The property that FlexiViT resamples for: enlarged by a linear resizing, a patch keeps its embedding."""
    rng = np.random.default_rng(0)
    weight, patch = rng.standard_normal((5, 2, 4, 4)), rng.standard_normal((2, 4, 4))
    up = resize_matrix(4, 9)
    larger = np.einsum("ih,jw,chw->cij", up, up, patch)
    found = np.einsum("dcij,cij->d", resample_patches(weight, (9, 9)), larger)
    np.testing.assert_allclose(found, np.einsum("dchw,chw->d", weight, patch), atol=1e-4)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 14 positions, not 1 and those of 3 x 4"):
        resample_positions(RECORDED["positions"], (3, 4), (6, 8), 1)
    with pytest.raises(ValueError, match="both must be"):
        resample_positions(RECORDED["positions"], (2, 2, 3), (2, 2, 4), 2)
    with pytest.raises(ValueError, match="interpolation is 'cubic'"):
        resize_matrix(3, 4, "cubic")
