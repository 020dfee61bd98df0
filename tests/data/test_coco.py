"""Annotations in the format of COCO: masks and boxes are where they say, and wrong ones are named."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import peer
from PIL import Image

from tinyvit.data import load_boxes, load_masks
from tinyvit.data.augment import IGNORED
from tinyvit.data.coco import decode_mask, fill_polygon, unpack_counts
from tinyvit.data.dense import NO_BOX, fit_boxes, fit_labels
from tinyvit.errors import DataError


def around(mask):
    """The smallest box around the pixels that are set, by their edges."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


SQUARE = [4, 2, 12, 2, 12, 10, 4, 10]


def annotated() -> dict:
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 30, "height": 20},
                   {"id": 3, "file_name": "b.png", "width": 30, "height": 20}],
        "categories": [{"id": 20, "name": "dog"}, {"id": 5, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 20, "bbox": [4, 2, 8, 8], "segmentation": [SQUARE], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 5, "bbox": [5, 3, 2, 2], "iscrowd": 0,
             "segmentation": [[5, 3, 7, 3, 7, 5, 5, 5]]},
            {"id": 3, "image_id": 3, "category_id": 5, "bbox": [0, 0, 1, 20], "iscrowd": 1,
             "segmentation": {"size": [20, 30], "counts": [0, 20, 580]}},
        ],
    }  # fmt: skip


def write_coco(folder: Path, change=lambda table: None) -> Path:
    for split in ("train", "test"):
        (folder / split).mkdir(exist_ok=True)
        for name in ("a", "b"):
            Image.new("RGB", (30, 20)).save(folder / split / f"{name}.png")
        table = annotated()
        change(table)
        (folder / f"{split}.json").write_text(json.dumps(table))
    return folder


def test_annotations_in_the_format_of_coco_are_read(tmp_path, caplog):
    name = f"coco:{write_coco(tmp_path)}"
    masks, boxes = load_masks(name, "train"), load_boxes(name, "train")
    assert masks.classes == ("background", "cat", "dog")  # in the order of their ids
    assert boxes.classes == ("cat", "dog")
    expected = np.zeros((20, 30), int)
    expected[2:10, 4:12], expected[3:5, 5:7] = 2, 1  # the smaller one is on top
    np.testing.assert_array_equal(masks.masks[0], expected)
    assert (masks.masks[1][:, 0] == IGNORED).all()  # a crowd
    assert (masks.masks[1][:, 1:] == 0).all()
    np.testing.assert_array_equal(boxes.boxes[0], [[4, 2, 12, 10], [5, 3, 7, 5]])
    np.testing.assert_array_equal(boxes.labels, [[1, 0], [NO_BOX, NO_BOX]])
    assert "1 boxes of crowds are left out" in caplog.text


def test_boxes_and_masks_are_cut_and_resized_alike(tmp_path):
    name = f"coco:{write_coco(tmp_path)}"
    masks, boxes = load_masks(name, "train", 40), load_boxes(name, "train", 40)
    np.testing.assert_array_equal(boxes.boxes[0, 0], [0, 4, 14, 20])  # of the square from column 5 to 25, doubled
    np.testing.assert_array_equal(around(masks.masks[0] > 0), [0, 4, 14, 20])
    np.testing.assert_array_equal(around(masks.masks[0] == 1), boxes.boxes[0, 1])


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(8, 40), height=st.integers(8, 40), size=st.integers(6, 50), seed=st.integers(0, 999)
)  # fmt: skip
def test_fitted_boxes_are_around_fitted_masks(width, height, size, seed):
    rng = np.random.default_rng(seed)
    left, top = rng.integers((width - 3, height - 3))
    right, bottom = left + 4, top + 4
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 1
    fitted = fit_labels(mask, size)
    box = np.array([[left, top, min(right, width), min(bottom, height)]], np.float32)
    (found,), (inside,) = fit_boxes(box, width, height, size)
    if fitted.any() and inside:
        assert np.abs(around(fitted) - found).max() <= 1.0


BAD = {
    "bbox": (lambda t: t["annotations"][0].update(bbox=[1, 2, 0, 4]), r"annotations\[0\] has the bbox \[1, 2, 0, 4\]"),
    "outside": (lambda t: t["annotations"][0].update(bbox=[1, 2, 90, 4]), "lies outside its image, 30 x 20"),
    "text": (lambda t: t["annotations"][1].update(bbox="wide"), r"annotations\[1\] has the bbox 'wide'"),
    "category": (lambda t: t["annotations"][1].update(category_id=9), "has the category_id 9, which is no category"),
    "image": (lambda t: t["annotations"][1].update(image_id=9), "has the image_id 9, which is no image"),
    "size": (lambda t: t["images"][1].update(width=31), r"images\[1\] has width 31 .*b.png has 30 x 20"),
    "away": (lambda t: t["images"][1].update(file_name="../a.png"), "it must be the name of a file in"),
    "missing": (lambda t: t["images"][1].update(file_name="c.png"), "there is no file .*c.png'"),
    "no table": (lambda t: t.pop("categories"), "has no list of objects 'categories'"),
    "a list": (lambda t: t["images"].append([]), "has no list of objects 'images'"),
    "ids": (lambda t: t["images"][0].update(id=[1]), r"images\[0\] has the ids \[\[1\]\]"),
    "names": (lambda t: t["categories"][0].update(name="cat"), "the names of categories must differ"),
    "none": (lambda t: [t["images"].clear(), t["annotations"].clear()], "lists no images"),
}


@pytest.mark.parametrize("what", BAD)
def test_wrong_annotations_are_refused_by_one_clear_error(tmp_path, what):
    change, message = BAD[what]
    with pytest.raises(DataError, match=message):
        load_boxes(f"coco:{write_coco(tmp_path, change)}", "train")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "must be a list of polygons, or run lengths"),
        ([], "must be a list of polygons"),
        ([[1, 2, 3, 4]], r"has the polygon \[1, 2, 3, 4\]; it must be"),
        ([[1, 2, 3, 4, 5, "6"]], "has the polygon"),
        ({"size": [30, 20], "counts": [600]}, r"of the size \[20, 30\]"),
        ({"size": [20, 30], "counts": [10, 580]}, "has runs of 590 pixels in all, for an image of 600"),
        ({"size": [20, 30], "counts": [-1, 601]}, "must be a list of polygons"),
        ({"size": [20, 30], "counts": "\x01"}, "no packed run lengths"),
        ({"size": [20, 30], "counts": "P"}, "end in the middle of a number"),
    ],
)
def test_wrong_masks_are_refused_by_one_clear_error(tmp_path, segmentation, message):
    def change(table):
        table["annotations"][0]["segmentation"] = segmentation

    with pytest.raises(DataError, match=rf"annotations\[0\].*segmentation.*{message}"):
        load_masks(f"coco:{write_coco(tmp_path, change)}", "train")


def test_json_that_is_none_and_categories_of_the_test_split_alone_are_refused(tmp_path):
    write_coco(tmp_path)
    table = annotated()
    table["categories"][0]["name"] = "horse"
    (tmp_path / "test.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=re.escape("has categories that") + r".*lacks: horse"):
        load_boxes(f"coco:{tmp_path}", "test")
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(DataError, match=r"train.json cannot be read as JSON"):
        load_boxes(f"coco:{tmp_path}", "train")


def test_a_polygon_has_the_pixels_whose_centres_are_inside():
    """The oracle asks matplotlib of each centre; concave polygons, and a ring of an inner and an outer one."""
    path = peer("matplotlib.path")
    rng = np.random.default_rng(0)
    centres = np.stack(np.meshgrid(np.arange(15) + 0.5, np.arange(12) + 0.5), axis=-1)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        radii = rng.uniform(1, 7, 7)
        points = np.stack([7.01 + radii * np.cos(angles), 6.03 + radii * np.sin(angles)], axis=1)
        expected = path.Path(points).contains_points(centres.reshape(-1, 2)).reshape(12, 15)
        np.testing.assert_array_equal(fill_polygon(points, 12, 15), expected)
    np.testing.assert_array_equal(fill_polygon(np.array([[2, 1], [5, 1], [5, 4], [2, 4]], float), 6, 7).sum(), 9)


def test_masks_of_coco_are_those_of_pycocotools():
    tools = peer("pycocotools.mask")
    rng = np.random.default_rng(0)
    for shape in ((7, 5), (40, 31), (300, 2)):
        mask = np.asfortranarray(rng.random(shape) < 0.3, np.uint8)
        packed = tools.encode(mask)
        counts = packed["counts"].decode()
        found = decode_mask({"size": list(shape), "counts": counts}, *shape)
        np.testing.assert_array_equal(found, mask)
        plain = {"size": list(shape), "counts": unpack_counts(counts)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its conversion of arrays
            expected = tools.decode(tools.frPyObjects(plain, *shape))
        np.testing.assert_array_equal(expected, decode_mask(plain, *shape))
