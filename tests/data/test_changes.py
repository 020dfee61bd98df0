"""Augmentation: colours agree with Pillow, geometry with its definition, and mixed labels are probabilities."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tinyvit.data import Augment, Batch, Dataset, Loader, Mix, colour
from tinyvit.data.geometry import draw_boxes, erase, resized_crops, transform
from tinyvit.data.policy import NAMES, apply_policy, change

RNG = np.random.default_rng(0)
SMOOTH = np.linspace(0, 255, 6 * 3 * 24 * 20).reshape(6, 3, 24, 20)
NOISE, PALE = RNG.integers(0, 256, (6, 3, 24, 20)), RNG.integers(90, 140, (4, 3, 24, 20))
IMAGES = np.concatenate([NOISE, PALE, SMOOTH]).astype(np.uint8)


def of_pillow(function) -> np.ndarray:
    return np.stack([np.asarray(function(Image.fromarray(x.transpose(1, 2, 0)))).transpose(2, 0, 1) for x in IMAGES])


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.8])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (colour.change_brightness, ImageEnhance.Brightness),
        (colour.change_contrast, ImageEnhance.Contrast),
        (colour.change_saturation, ImageEnhance.Color),
        (colour.sharpen, ImageEnhance.Sharpness),
    ],
)
def test_colours_are_changed_as_pillow_changes_them(ours, theirs, factor) -> None:
    expected = of_pillow(lambda image: theirs(image).enhance(factor)).astype(int)
    assert np.abs(ours(IMAGES, np.full(len(IMAGES), factor)) - expected).max() <= 2  # Pillow truncates


def test_tables_of_values_are_those_of_pillow() -> None:
    count = len(IMAGES)
    np.testing.assert_array_equal(colour.equalize(IMAGES), of_pillow(ImageOps.equalize))
    assert np.abs(colour.stretch(IMAGES).astype(int) - of_pillow(ImageOps.autocontrast)).max() <= 1
    for bits in range(1, 9):
        found = colour.posterize(IMAGES, np.full(count, float(bits)))
        np.testing.assert_array_equal(found, of_pillow(lambda image, bits=bits: ImageOps.posterize(image, bits)))
    for threshold in (0, 100, 256):
        found = colour.solarize(IMAGES, np.full(count, float(threshold)))
        np.testing.assert_array_equal(found, of_pillow(lambda image, t=threshold: ImageOps.solarize(image, t)))


def test_geometry_takes_pixels_from_where_it_says() -> None:
    identity = np.tile(np.eye(2), (len(IMAGES), 1, 1))
    np.testing.assert_array_equal(transform(IMAGES, identity, np.zeros((len(IMAGES), 2))), IMAGES)
    moved = transform(IMAGES, identity, np.tile([2.0, -3.0], (len(IMAGES), 1)))
    np.testing.assert_array_equal(moved[..., :-2, 3:], IMAGES[..., 2:, :-3])
    assert not moved[..., -2:, :].any()
    square = IMAGES[..., :20, :]
    quarter = np.tile([[0.0, 1.0], [-1.0, 0.0]], (len(IMAGES), 1, 1))
    turned = transform(square, quarter, np.zeros((len(IMAGES), 2)))
    np.testing.assert_array_equal(turned, np.rot90(square, 1, axes=(2, 3)))


def test_a_crop_is_the_box_stretched_to_the_image() -> None:
    whole = np.tile([0.0, 0.0, 24.0, 20.0], (len(IMAGES), 1))
    np.testing.assert_array_equal(resized_crops(IMAGES, whole), IMAGES)
    ramp = np.broadcast_to(np.arange(10, dtype=np.float32), (1, 1, 12, 10))
    found = resized_crops(ramp, np.array([[3.0, 2.0, 6.0, 5.0]]))[0, 0, 0]
    np.testing.assert_allclose(found, np.clip(2 + (np.arange(10) + 0.5) / 2 - 0.5, 0, 9), atol=1e-5)
    boxes = draw_boxes(2000, 12, 10, 0.25, np.random.default_rng(1))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= np.array([12, 10]) + 1e-9).all()
    assert boxes[:, 2:].prod(axis=1).min() > 0.25 * 120 * 0.8


def test_erasing_fills_one_rectangle_of_some_images() -> None:
    found = erase(np.zeros((400, 1, 16, 16), np.uint8), 0.5, np.random.default_rng(0))
    changed = (found > 0).any(axis=(1, 2, 3))
    assert 150 < changed.sum() < 250
    for image in found[changed][:50, 0]:
        rows, columns = np.nonzero(image)
        box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (box > 0).mean() > 0.8  # noise may be 0
        assert box.size <= 0.5 * 256


@pytest.mark.parametrize("kind", ["rand", "trivial"])
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_keep_form_and_depend_on_the_stream_alone(kind, channels) -> None:
    images = IMAGES[:, :channels].copy()
    before = images.copy()
    one, two, other = (apply_policy(images, kind, 2, 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(one, two)
    assert (one.dtype, one.shape) == (np.uint8, images.shape)
    assert (one != other).any()


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_of_a_policy_changes_its_images_alone(name) -> None:
    chosen = np.where(np.arange(len(IMAGES)) % 2, NAMES.index(name), 0)
    ones = np.ones(len(IMAGES))
    found = change(IMAGES, chosen, 0.8 * ones, -ones)
    np.testing.assert_array_equal(found[::2], IMAGES[::2])
    assert (found[1::2] != IMAGES[1::2]).any() == (name != "identity")
    if name not in ("stretch", "equalize"):  # which have no strength
        np.testing.assert_array_equal(change(IMAGES, chosen, 0 * ones, ones), IMAGES)


def dataset(count: int = 40) -> Dataset:
    images = np.zeros((count, 1, 6, 6), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 5, 0] = np.arange(count), 255
    return Dataset("made", "train", images, np.arange(count) % 4, tuple("abcd"), (0.0,), (1 / 255,))


def test_alternating_flips_show_both_sides_of_every_image_in_two_epochs() -> None:
    loader = Loader(dataset(), 10, seed=3, augment=Augment(flip_alternating=True))
    sides = []
    for epoch in range(4):
        of = {}
        for batch in loader.batches(epoch):
            for image in batch.images[:, 0]:
                mirrored = image[5, 5] > 0
                of[round(float(image[0, 5 if mirrored else 0]))] = mirrored
        sides.append([of[i] for i in range(40)])
    assert sides[0] == sides[2] == [not side for side in sides[1]]
    assert 8 < sum(sides[0]) < 32


def test_repeats_put_each_image_into_a_batch_several_times() -> None:
    loader = Loader(dataset(), 8, seed=1, repeats=4)
    batches = [np.round(batch.images[:, 0, 0, 0]).astype(int) for batch in loader.batches(0)]
    assert len(batches) == len(loader) == 5
    for numbers in batches:
        assert set(np.bincount(numbers)) <= {0, 4}


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixed_labels_are_the_shares_of_the_images(options) -> None:
    count, classes = 12, 3
    labels = np.arange(count) % classes
    images = np.broadcast_to(labels[:, None, None, None], (count, 1, 8, 8)).astype(np.float32)
    for seed in range(20):
        mixed = Mix(classes, **options)(Batch(images, labels, 0), np.random.default_rng(seed))
        np.testing.assert_allclose(mixed.labels.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(mixed.images.mean(axis=(1, 2, 3)), mixed.labels @ np.arange(classes), atol=1e-5)


def test_a_batch_does_not_depend_on_those_before_it() -> None:
    augment = Augment(crop=0.4, policy="rand", colour=0.3, erasing=0.5, flip_alternating=True)
    loader = Loader(dataset(), 8, augment=augment, mix=Mix(4, 0.3, 1.0), repeats=2)
    every = list(loader.batches(2))
    for start in range(5):
        for one, other in zip(every[start:], loader.batches(2, start), strict=True):
            np.testing.assert_array_equal(one.images, other.images)
            np.testing.assert_array_equal(one.labels, other.labels)
