"""Augmentation: every change against a naive loop over images, and the properties that it keeps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvit.data import Augment
from tinyvit.data.augment import cover_squares, rotate_and_scale, shift_pixels

EVERYTHING = Augment(rotate=15, scale=0.2, shift=2, flip=True, cutout=3)


def random_images(
    batch: int = 6, channels: int = 3, height: int = 7, width: int = 5, dtype: str = "uint8", seed: int = 0
) -> np.ndarray:
    values = np.random.default_rng(seed).integers(1, 256, (batch, channels, height, width))  # never background
    return values.astype(dtype)


images_strategy = st.builds(
    random_images,
    batch=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    dtype=st.sampled_from(["uint8", "float32", "float64"]),
    seed=st.integers(0, 100),
)


def naive_shift(image: np.ndarray, down: int, right: int) -> np.ndarray:
    shifted = np.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                shifted[:, y, x] = image[:, y - down, x - right]
    return shifted


def naive_rotate_and_scale(image: np.ndarray, degrees: float, factor: float) -> np.ndarray:
    """Sample bilinearly, in float64, at the position from which each pixel is taken."""
    _, height, width = image.shape
    angle = np.deg2rad(degrees)
    result = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            up, right = -(y - (height - 1) / 2), x - (width - 1) / 2
            source_right = (right * np.cos(angle) + up * np.sin(angle)) / factor
            source_up = (up * np.cos(angle) - right * np.sin(angle)) / factor
            source_y, source_x = (height - 1) / 2 - source_up, (width - 1) / 2 + source_right
            for sample_y in (int(np.floor(source_y)), int(np.floor(source_y)) + 1):
                for sample_x in (int(np.floor(source_x)), int(np.floor(source_x)) + 1):
                    if 0 <= sample_y < height and 0 <= sample_x < width:
                        weight = (1 - abs(source_y - sample_y)) * (1 - abs(source_x - sample_x))
                        result[:, y, x] += weight * image[:, sample_y, sample_x]
    return result


@given(images=images_strategy, seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_shifting_equals_the_naive_loop(images: np.ndarray, seed: int) -> None:
    offsets = np.random.default_rng(seed).integers(-4, 5, (len(images), 2))
    expected = [naive_shift(image, *offset) for image, offset in zip(images, offsets, strict=True)]
    shifted = shift_pixels(images, offsets)
    assert shifted.dtype == images.dtype
    assert np.array_equal(shifted, expected)


@given(images=images_strategy, seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_rotating_and_scaling_equals_the_naive_loop(images: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    degrees, factors = rng.uniform(-180, 180, len(images)), rng.uniform(0.3, 3, len(images))
    expected = np.stack([naive_rotate_and_scale(*one) for one in zip(images, degrees, factors, strict=True)])
    result = rotate_and_scale(images, degrees, factors)
    assert result.dtype == images.dtype
    # coordinates are float32 and below 32: roundings of 2**-20, a few, in both axes; a slope of 255 a pixel
    rounding = 0.5 if images.dtype == np.uint8 else 0
    assert np.abs(result - expected).max() <= rounding + 2 * 255 * 2**-18


def test_a_quarter_turn_is_counter_clockwise_and_exact() -> None:
    images = random_images(height=6, width=6)
    turned = rotate_and_scale(images, np.full(6, 90.0), np.ones(6))
    assert np.array_equal(turned, np.rot90(images, axes=(2, 3)))


def test_rotation_by_0_and_scaling_by_1_is_the_identity() -> None:
    images = random_images()
    assert np.array_equal(rotate_and_scale(images, np.zeros(6), np.ones(6)), images)


@given(images=images_strategy, side=st.integers(1, 12), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_covering_equals_the_naive_loop(images: np.ndarray, side: int, seed: int) -> None:
    height, width = images.shape[2:]
    centres = np.random.default_rng(seed).integers((height, width), size=(len(images), 2))
    expected = images.copy()
    for image, (y, x) in zip(expected, centres, strict=True):
        top, left = y - side // 2, x - side // 2
        image[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
    assert np.array_equal(cover_squares(images, centres, side), expected)


@given(images=images_strategy, seed=st.integers(0, 2**32))
def test_augmentation_without_settings_is_the_identity(images: np.ndarray, seed: int) -> None:
    assert np.array_equal(Augment()(images, np.random.default_rng(seed)), images)


@given(images=images_strategy, seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_shape_dtype_and_input_are_kept_and_the_generator_decides(images: np.ndarray, seed: int) -> None:
    before = images.copy()
    first = EVERYTHING(images, np.random.default_rng(seed))
    assert first.shape == images.shape
    assert first.dtype == images.dtype
    assert np.array_equal(images, before)
    assert np.array_equal(first, EVERYTHING(images, np.random.default_rng(seed)))


def test_flipping_mirrors_about_half_of_the_images() -> None:
    images = random_images(batch=400)
    flipped = Augment(flip=True)(images, np.random.default_rng(0))
    mirrored = (flipped == images[..., ::-1]).all((1, 2, 3))
    kept = (flipped == images).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 150 < mirrored.sum() < 250  # 5 standard deviations
    assert np.array_equal(Augment(flip=True)(flipped, np.random.default_rng(0)), images)


def test_every_shift_in_the_range_occurs_and_no_other() -> None:
    images = np.zeros((600, 1, 5, 5), np.uint8)
    images[:, :, 2, 2] = 255
    shifted = Augment(shift=2)(images, np.random.default_rng(0))
    assert (shifted.sum((1, 2, 3)) == 255).all()  # the point is still inside: it moved by 2 pixels at most
    assert (shifted.sum((0, 1)) > 0).all()


def test_rotations_and_scales_stay_in_their_range() -> None:
    # A point at the right end of the middle row: its angle and radius after the change are those drawn.
    images = np.zeros((300, 1, 41, 41))
    images[:, :, 20, 35] = 1
    moved = Augment(rotate=20, scale=0.2)(images, np.random.default_rng(0))[:, 0]
    mass = moved.sum((1, 2))
    y = (moved * np.arange(41)[:, None]).sum((1, 2)) / mass - 20
    x = (moved * np.arange(41)).sum((1, 2)) / mass - 20
    degrees, factors = np.rad2deg(np.arctan2(-y, x)), np.hypot(x, y) / 15
    assert degrees.min() == pytest.approx(-20, abs=2)
    assert degrees.max() == pytest.approx(20, abs=2)
    assert factors.min() == pytest.approx(0.8, abs=0.05)
    assert factors.max() == pytest.approx(1.2, abs=0.05)


def test_images_of_a_batch_are_changed_independently() -> None:
    images = np.repeat(random_images(batch=1, height=9, width=9), 20, axis=0)
    for augment in (Augment(shift=2), Augment(rotate=20), Augment(scale=0.3), Augment(cutout=3)):
        changed = augment(images, np.random.default_rng(0))
        assert len(np.unique(changed.reshape(20, -1), axis=0)) > 5, augment


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ({"rotate": -1}, "from 0 to 180 degrees"),
        ({"rotate": 181}, "from 0 to 180 degrees"),
        ({"scale": 1.0}, "0 or more and less than 1"),
        ({"scale": -0.1}, "0 or more and less than 1"),
        *[({name: 1.1}, "0 or more and at most 1") for name in ("crop", "colour", "policy_strength", "erasing")],
        ({"shift": -1}, "0 pixels or more"),
        ({"cutout": -1}, "0 pixels or more"),
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong: dict[str, float], allowed: str) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is {wrong[name]}; it must be {allowed}"):
        Augment(**wrong)
    if allowed.endswith("at most 1"):
        Augment(**{name: 1.0})
