"""Data with masks and boxes: what they say is to be seen, they move with their images, and bad files are named."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tinyvit.data import Augment, Loader, canvas, datasets, load_boxes, load_masks, scenes
from tinyvit.data.augment import IGNORED, rotate_and_scale_masks
from tinyvit.data.dense import NO_BOX, BoxDataset, MaskDataset
from tinyvit.errors import DataError


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(scenes, "TRAIN_SCENES", 30)
    monkeypatch.setattr(scenes, "TEST_SCENES", 30)
    scenes.of_split.cache_clear()
    yield
    scenes.of_split.cache_clear()


def around(mask):
    """The smallest box around the pixels that are set, by their edges."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


# Scenes and canvases ------------------------------------------------------------------------------------------------


def test_masks_and_boxes_of_scenes_are_where_things_are_drawn(few):
    drawn = scenes.of_split("test").all
    images, masks = scenes.render(drawn), scenes.masks(drawn)
    for image, mask, scene in zip(images.astype(float), masks, drawn, strict=True):
        assert set(np.unique(mask)) == set(range(len(scene) + 1))
        empty = scenes.render([()])[0].astype(float)
        changed = np.abs(image - empty).max(axis=0)
        for number, (thing, box) in enumerate(zip(scene, scenes.boxes(scene), strict=True), 1):
            own = mask == number
            assert (changed[own] > 8).all()  # every thing is darker, or more colourful, than the ground
            # half a pixel by rounding; a circle or a triangle may reach furthest between the centres of two pixels
            slack = np.array([0.5, 0.5 + (thing.shape == "triangle"), 0.5, 0.5]) + 0.04
            slack[[0, 2]] += 0.5 * (thing.shape == "triangle")
            assert (np.abs(around(own) - box) <= slack).all(), thing
        assert (changed[mask == 0] < 130).all()


def test_classes_of_scenes_are_shapes_or_pairs_and_the_held_out_pairs_are_apart(few):
    for split in ("train", "test"):
        shapes, pairs = (load_masks(f"scenes-{kind}", split) for kind in ("shapes", "pairs"))
        assert shapes.classes == ("background", *scenes.SHAPES)
        assert len(pairs.classes) == 19
        same = np.array([0, *(1 + scenes.SHAPES.index(name.split()[1]) for name in pairs.classes[1:])])
        np.testing.assert_array_equal(same[pairs.masks], shapes.masks)
        held_out = [pairs.classes.index(" ".join(pair)) for pair in scenes.HELD_OUT]
        has_one = np.isin(pairs.masks, held_out).any(axis=(1, 2))
        np.testing.assert_array_equal(has_one, ~pairs.counts)
        boxes = load_boxes("scenes-pairs", split)
        for labels, mask in zip(boxes.labels, pairs.masks, strict=True):
            assert set(labels[labels != NO_BOX] + 1) == set(np.unique(mask)) - {0}


@pytest.fixture
def drawn(monkeypatch):
    """Canvases of twenty made-up digits: the digit d has d + 1 rows of ink in a faint frame."""
    images = np.zeros((20, 1, 28, 28), np.uint8)
    for i, image in enumerate(images):
        image[0, 4 : 10 + i % 10, 5:14] = 90
        image[0, 5 : 6 + i % 10, 6:13] = 200
    made = datasets.Dataset("mnist", "train", images, np.arange(20) % 10, tuple("0123456789"), (0.1,), (0.3,))
    monkeypatch.setattr(canvas, "load_dataset", lambda name, split: made)
    monkeypatch.setattr(canvas, "COUNTS", {"train": 40, "test": 20})
    return canvas.draw_canvases("train")


def test_a_canvas_has_two_to_four_digits_that_do_not_overlap(drawn):
    assert {len(labels) for labels in drawn.labels} == {2, 3, 4}
    for image, mask, boxes, labels in zip(drawn.images[:, 0], drawn.masks, drawn.boxes, drawn.labels, strict=True):
        np.testing.assert_array_equal(mask > 0, image >= 128)
        for box, label in zip(boxes.astype(int), labels, strict=True):
            part = mask[box[1] : box[3], box[0] : box[2]]
            assert (part == label + 1).sum() == 7 * (label + 1)
            assert (box[2] - box[0], box[3] - box[1]) == (7, label + 1)
        assert (mask > 0).sum() == sum(7 * (label + 1) for label in labels)


def test_canvases_of_mnist_share_nothing_between_splits(data_dir, monkeypatch):
    data_dir("mnist")
    monkeypatch.setattr(canvas, "COUNTS", {"train": 20, "test": 20})
    for split in ("train", "test"):
        masks, boxes = load_masks("canvas", split), load_boxes("canvas", split)
        np.testing.assert_array_equal(masks.images, boxes.images)
        assert abs(masks.images.mean() / 255 - masks.mean[0]) < 0.02
        for mask, own, labels in zip(masks.masks, boxes.boxes, boxes.labels, strict=True):
            for box, label in zip(own[labels != NO_BOX].astype(int), labels[labels != NO_BOX], strict=True):
                inside = mask[box[1] : box[3], box[0] : box[2]]
                assert (around(inside) == [0, 0, box[2] - box[0], box[3] - box[1]]).all()
                assert set(np.unique(inside)) == {0, label + 1}


# Augmentation -------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16), shift=st.integers(0, 6), flip=st.booleans(), scale=st.sampled_from([0.0, 0.3]),
    rotate=st.sampled_from([0.0, 40.0]), cutout=st.sampled_from([0, 5]),
)  # fmt: skip
def test_masks_stay_on_their_pixels(seed, shift, flip, scale, rotate, cutout):
    """An image that shows its own mask still does after any augmentation, but for a pixel at the edges of regions."""
    rng = np.random.default_rng(seed)
    masks = np.kron(rng.integers(1, 3, (2, 4, 4)), np.ones((6, 6))).astype(np.uint8)
    images = (masks[:, None] * 100).astype(np.uint8)
    change = Augment(rotate=rotate, scale=scale, shift=shift, flip=flip, cutout=cutout)
    changed, moved = change(images, np.random.default_rng(seed), masks=masks)
    np.testing.assert_array_equal(changed, change(images, np.random.default_rng(seed)))  # masks change no draw
    shown = changed[:, 0].astype(float)
    if rotate or scale:
        clear = (shown % 100 == 0) & (shown > 0) & (moved != IGNORED)  # not a mixture of two classes
        assert (shown != 100.0 * moved)[clear].mean() < 0.02  # some mixtures are a multiple of 100 by chance
    else:
        np.testing.assert_array_equal(np.where(moved == IGNORED, 0, 100 * moved), shown)
    assert masks.max() == 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), shift=st.integers(0, 6), flip=st.booleans(), scale=st.sampled_from([0.0, 0.4]))
def test_boxes_stay_around_their_things(seed, shift, flip, scale):
    images = np.zeros((3, 1, 32, 40), np.uint8)
    boxes = np.zeros((3, 1, 4), np.float32)
    rng = np.random.default_rng(seed)
    for image, box in zip(images[:, 0], boxes[:, 0], strict=True):
        top, left = rng.integers((5, 6), (13, 25))  # so that scaling moves none of it out of the image
        image[top : top + 14, left : left + 9] = 200
        box[:] = [left, top, left + 9, top + 14]
    changed, moved = Augment(scale=scale, shift=shift, flip=flip)(images, np.random.default_rng(seed), boxes=boxes)
    for image, (left, top, right, bottom) in zip(changed[:, 0], moved[:, 0], strict=True):
        inside = np.clip([left, top, right, bottom], 0, [40, 32, 40, 32])
        if (image >= 100).any() and (inside[2:] - inside[:2] > 2).all():
            assert np.abs(around(image >= 100) - inside).max() <= (0.51 if scale else 1e-4)


def test_pixels_that_come_into_view_have_no_class():
    masks = np.ones((1, 12, 12), np.uint8)
    moved = rotate_and_scale_masks(masks, np.array([0.0]), np.array([0.5]))
    assert (moved[0, 4:8, 4:8] == 1).all()
    assert (moved[0, [0, 0, -1, -1], [0, -1, 0, -1]] == IGNORED).all()
    assert set(np.unique(moved)) == {1, IGNORED}


def test_boxes_cannot_be_rotated():
    with pytest.raises(ValueError, match="rotate is 5"):
        Augment(rotate=5)(np.zeros((1, 1, 8, 8), np.uint8), np.random.default_rng(0), boxes=np.zeros((1, 1, 4)))


def test_batches_carry_masks_and_boxes_that_move_with_the_images(few):
    for load in (load_masks, load_boxes):
        dataset = load("scenes-shapes", "train")
        plain = next(Loader(dataset, 6, shuffle=False).batches(0))
        batch = next(Loader(dataset, 6, shuffle=False, augment=Augment(flip=True, shift=30)).batches(0))
        assert plain.labels.dtype == batch.labels.dtype == np.int64
        assert (plain.images != batch.images).any()
        if load is load_masks:
            np.testing.assert_array_equal(plain.labels, dataset.masks[:6])
            assert (batch.labels == IGNORED).any()
        else:
            np.testing.assert_allclose(plain.drawn[0] * 48, dataset.boxes[:6], atol=1e-5)
            left = batch.labels != NO_BOX
            assert (batch.drawn[0][left] >= 0).all()
            assert (batch.drawn[0][left] <= 1).all()
            assert left.sum() < (plain.labels != NO_BOX).sum()  # some were moved out of their image


def test_a_part_of_a_data_set_keeps_images_masks_and_boxes_together(few):
    for dataset in (load_masks("scenes-shapes", "test"), load_boxes("scenes-shapes", "test")):
        some = dataset.chosen(np.array([50, 3]))
        targets = "masks" if isinstance(dataset, MaskDataset) else "boxes"
        for name in ("images", targets, "kind_of"):
            np.testing.assert_array_equal(getattr(some, name), getattr(dataset, name)[[50, 3]])
        assert some.fingerprint() != dataset.chosen(np.array([3, 50])).fingerprint()
        assert list(some.counts) == [False, True]
    with pytest.raises(ValueError, match="masks are"):
        MaskDataset(
            name="a", split="train", images=np.zeros((2, 1, 4, 4), np.uint8), masks=np.zeros((2, 4, 5), np.uint8),
            classes=("a", "b"), mean=(0.0,), std=(1.0,), kind_of=np.zeros(2, int),
        )  # fmt: skip
    with pytest.raises(ValueError, match="boxes are"):
        BoxDataset(
            name="a", split="train", images=np.zeros((2, 1, 4, 4), np.uint8), boxes=np.zeros((2, 3, 4), np.float32),
            labels=np.zeros((2, 2), int), classes=("a",), mean=(0.0,), std=(1.0,), kind_of=np.zeros(2, int),
        )  # fmt: skip


# Folders of masks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def masked(tmp_path):
    """A folder with two images of each split and masks in grey and in indexed colours."""
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    for split in ("train", "test"):
        for part in ("images", "masks"):
            (tmp_path / split / part / "deep").mkdir(parents=True)
        for name, mode in (("a", "L"), ("deep/b", "P")):
            pixels = np.zeros((20, 30, 3), np.uint8)
            pixels[:, 10:20] = 255
            Image.fromarray(pixels).save(tmp_path / split / "images" / f"{name}.jpg", quality=95)
            mask = np.zeros((20, 30), np.uint8)
            mask[:, 10:20], mask[0] = 2, IGNORED
            image = Image.fromarray(mask)
            if mode == "P":
                image = Image.fromarray(mask, "P")
                image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
            image.save(tmp_path / split / "masks" / f"{name}.png")
    return tmp_path


def test_a_folder_of_masks_is_read(masked):
    dataset = load_masks(f"folder:{masked}", "train")
    assert dataset.classes == ("background", "cat", "dog")
    assert dataset.masks.shape == (2, 20, 30)
    for mask in dataset.masks:
        assert (mask[1:, 10:20] == 2).all()
        assert (mask[0] == IGNORED).all()
        assert (mask[1:, :10] == 0).all()
    fitted = load_masks(f"folder:{masked}", "test", image_size=10)
    assert fitted.images.shape == (2, 3, 10, 10)
    bright = fitted.images[:, 0, 1:] > 200
    assert (fitted.masks[:, 1:][bright] == 2).all()


def spoil(folder: Path, what: str) -> str:
    """Spoil a folder in one way; return what the error is to say."""
    mask = folder / "train" / "masks" / "a.png"
    if what == "no classes":
        (folder / "classes.txt").unlink()
        return r"classes.txt cannot be read .*name of a class on each line"
    if what == "one class":
        (folder / "classes.txt").write_text("only\n")
        return "classes.txt has 1 names"
    if what == "no mask":
        mask.unlink()
        return r"a.png does not exist; it must be the mask of .*a.jpg"
    if what == "another size":
        Image.new("L", (20, 30)).save(mask)
        return r"a.png has 20 x 30 pixels, and its image .*a.jpg has 30 x 20"
    if what == "colours":
        Image.new("RGB", (30, 20)).save(mask)
        return r"a.png has pixels of the mode RGB; a mask is a grey or indexed PNG"
    if what == "values":
        Image.new("L", (30, 20), 7).save(mask)
        return r"a.png has the values 7; there are 3 classes \(0 to 2\)"
    if what == "rotated":
        exif = Image.Exif()
        exif[274] = 6
        Image.new("RGB", (30, 20)).save(folder / "train" / "images" / "a.jpg", exif=exif)
        return "a.jpg has the orientation tag 6"
    if what == "sizes":
        Image.new("RGB", (10, 10)).save(folder / "train" / "images" / "a.jpg")
        Image.new("L", (10, 10)).save(mask)
        return r"b.jpg has the shape \(3, 20, 30\) .* set data.image_size"
    if what == "no images":
        for file in (folder / "train" / "images").rglob("*.jpg"):
            file.unlink()
        return "holds no images that can be read"
    raise AssertionError(what)


SPOILT = [
    *("no classes", "one class", "no mask", "another size", "colours", "values", "rotated", "sizes", "no images"),
]


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_folder_of_masks_is_refused_by_one_clear_error(masked, what):
    message = spoil(masked, what)
    with pytest.raises(DataError, match=message):
        load_masks(f"folder:{masked}", "train")


def test_names_without_masks_or_boxes_are_refused(masked, tmp_path):
    with pytest.raises(DataError, match="digits has no masks or boxes"):
        load_masks("digits", "train")
    with pytest.raises(DataError, match="did you mean 'canvas'"):
        load_boxes("canvass", "train")
    with pytest.raises(DataError, match="the images of canvas have a fixed size"):
        load_masks("canvas", "train", 32)
    with pytest.raises(DataError, match="a folder of masks has no boxes; give coco:PATH"):
        load_boxes(f"folder:{masked}", "train")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "classes.txt").write_text("a\nb")
    with pytest.raises(DataError, match="is not a folder; the layout is"):
        load_masks(f"folder:{tmp_path / 'x'}", "train")
    with pytest.raises(ValueError, match="split is 'val'"):
        load_masks("canvas", "val")
