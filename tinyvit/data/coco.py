"""Annotations in the JSON format of COCO: boxes, and masks as polygons or run lengths (Lin et al., 2014).

The layout is ``PATH/train.json`` with the images in ``PATH/train/``, and ``PATH/test.json`` with those in
``PATH/test/``. Of the JSON only this is read: "images" (id, file_name, width, height), "categories" (id, name) and
"annotations" (image_id, category_id, bbox, segmentation, iscrowd).
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.files import parse_json, read_text
from ..errors import DataError, log
from .datasets import CHANNEL_STATISTICS
from .dense import BACKGROUND, IGNORED, BoxDataset, MaskDataset, fit_boxes, fit_labels, padded_boxes
from .image_files import listed
from .images import open_image, read_image
from .masks import check_sizes, size_as_stored


@dataclass(frozen=True)
class _Picture:
    """An image of the JSON file, and the annotations of its things."""

    path: Path
    width: int
    height: int
    things: list[dict[str, Any]]


def coco_masks(path: str | Path, split: str, image_size: int | None = None) -> MaskDataset:
    """Load the masks of a split; smaller things are drawn over larger ones, and crowds are left out of all figures.

    The classes are the background and the categories of ``train.json`` in the order of their ids. Raises DataError.
    """
    names, pictures = _read(Path(path), split)
    numbers = {category: number for number, category in enumerate(names, 1)}
    masks = [fit_labels(_mask_of(picture, numbers), image_size) for picture in pictures]
    return MaskDataset(
        masks=np.stack(masks), classes=(BACKGROUND, *names), **_shared(path, split, pictures, image_size)
    )


def coco_boxes(path: str | Path, split: str, image_size: int | None = None) -> BoxDataset:
    """Load the boxes of a split. Boxes of crowds are left out, and counted in a warning. Raises DataError."""
    names, pictures = _read(Path(path), split)
    boxes, labels, crowds = [], [], 0
    for picture in pictures:
        things = [thing for thing in picture.things if not thing.get("iscrowd")]
        crowds += len(picture.things) - len(things)
        found = np.array([_corners(picture, thing) for thing in things], np.float32).reshape(-1, 4)
        fitted, inside = fit_boxes(found, picture.width, picture.height, image_size)
        boxes.append(fitted[inside])
        labels.append(np.array([names.index(thing["category"]) for thing in things], np.int64)[inside])
    if crowds:
        log.warning("%s: %d boxes of crowds are left out", Path(path) / f"{split}.json", crowds)
    all_boxes, all_labels = padded_boxes(boxes, labels)
    return BoxDataset(boxes=all_boxes, labels=all_labels, classes=names, **_shared(path, split, pictures, image_size))


def _shared(path: str | Path, split: str, pictures: list[_Picture], image_size: int | None) -> dict[str, Any]:
    """Return the arguments that data sets of masks and of boxes have in common."""
    images = [read_image(picture.path, 3, image_size) for picture in pictures]
    files = [picture.path for picture in pictures]
    check_sizes(files, images)
    mean, std = CHANNEL_STATISTICS["folder"]
    return {
        "name": f"coco:{path}",
        "split": split,
        "images": np.stack(images),
        "mean": mean,
        "std": std,
        "kind_of": np.zeros(len(files), np.int64),
        "files": tuple(map(str, files)),
    }


# Reading the JSON ---------------------------------------------------------------------------------------------------


def _read(root: Path, split: str) -> tuple[tuple[str, ...], list[_Picture]]:
    """Return the names of the categories of the train split, and the images of a split; each thing has a "category"."""
    names = tuple(_categories(root / "train.json", _parsed(root / "train.json")).values())
    path = root / f"{split}.json"
    tables = _parsed(path)
    categories = _categories(path, tables)
    if unknown := sorted(set(categories.values()) - set(names)):
        raise DataError(f"{path} has categories that {root / 'train.json'} lacks: {listed(unknown)}")
    things = defaultdict(list)
    for place, thing in enumerate(tables["annotations"]):
        where = f"{path}: annotations[{place}]"
        if thing.get("category_id") not in categories:
            raise DataError(f"{where} has the category_id {thing.get('category_id')!r:.50}, which is no category")
        things[thing.get("image_id")].append({**thing, "category": categories[thing["category_id"]], "where": where})
    pictures = [
        _picture(root / split, entry, things.pop(entry.get("id"), []), f"{path}: images[{place}]")
        for place, entry in enumerate(tables["images"])
    ]
    if things:
        first = next(iter(things.values()))[0]
        raise DataError(f"{first['where']} has the image_id {first.get('image_id')!r:.50}, which is no image")
    if not pictures:
        raise DataError(f"{path} lists no images")
    return names, pictures


def _parsed(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the three tables of a JSON file, whose entries are mappings with ids that can be looked up."""
    try:
        tables = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as JSON ({getattr(error, 'strerror', None) or error}); the layout is "
            "PATH/train.json, PATH/train/<file_name>, PATH/test.json, PATH/test/..."
        ) from error
    for key in ("images", "categories", "annotations"):
        entries = tables.get(key) if isinstance(tables, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path} has no list of objects {key!r}, as files in the format of COCO have")
        for place, entry in enumerate(entries):
            ids = [entry[name] for name in ("id", "image_id", "category_id") if name in entry]
            if not all(isinstance(number, int | str) for number in ids):
                raise DataError(f"{path}: {key}[{place}] has the ids {ids!r:.100}; they must be integers")
    return tables


def _categories(path: Path, tables: dict[str, list[dict[str, Any]]]) -> dict[Any, str]:
    """Return the names of categories by their ids, in the order of the ids."""
    found: dict[Any, Any] = {entry.get("id"): entry.get("name") for entry in tables["categories"]}
    kinds = {type(number) for number in found}
    if not found or len(kinds) > 1 or not all(isinstance(name, str) and name for name in found.values()):
        raise DataError(f"{path}: categories must be objects with an id and a name, at least one of them")
    if len(set(found.values())) < len(found) or BACKGROUND in found.values() or len(found) >= IGNORED:
        raise DataError(f"{path}: the names of categories must differ, and none be {BACKGROUND!r}; 254 at most")
    return dict(sorted(found.items()))


def _picture(folder: Path, entry: dict[str, Any], things: list[dict[str, Any]], where: str) -> _Picture:
    """Return an image and its annotations. Raises DataError if the file is not there, or has another size."""
    name, width, height = (entry.get(key, 0) for key in ("file_name", "width", "height"))
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"{where} has the file_name {name!r:.100}; it must be the name of a file in {folder}")
    with open_image(folder / name) as opened:
        if size_as_stored(folder / name, opened) != (width, height):
            real = " x ".join(map(str, opened.size))
            raise DataError(
                f"{where} has width {width!r:.50} and height {height!r:.50}; {folder / name} has {real} pixels"
            )
    return _Picture(folder / name, width, height, things)


def _corners(picture: _Picture, thing: dict[str, Any]) -> tuple[float, ...]:
    """Return the box of a thing as left, top, right, bottom; its "bbox" is left, top, width, height."""
    box: Any = thing.get("bbox")
    if not (_are_numbers(box) and len(box) == 4 and box[2] > 0 and box[3] > 0):
        raise DataError(f"{thing['where']} has the bbox {box!r:.100}; it must be [left, top, width, height] in pixels")
    left, top, width, height = box
    if left < -1 or top < -1 or left + width > picture.width + 1 or top + height > picture.height + 1:
        raise DataError(f"{thing['where']}: the bbox {box} lies outside its image, {picture.width} x {picture.height}")
    return left, top, left + width, top + height


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e6 for x in values
    )


# Masks --------------------------------------------------------------------------------------------------------------


def _mask_of(picture: _Picture, numbers: dict[str, int]) -> NDArray[np.uint8]:
    """Draw the things of an image into one mask (H, W), the larger ones first."""
    mask = np.zeros((picture.height, picture.width), np.uint8)
    drawn = []
    for thing in picture.things:
        try:
            shape = decode_mask(thing.get("segmentation"), picture.height, picture.width)
        except ValueError as error:
            raise DataError(f"{thing['where']}: segmentation {error}") from error
        drawn.append((shape, IGNORED if thing.get("iscrowd") else numbers[thing["category"]]))
    for shape, number in sorted(drawn, key=lambda one: -int(one[0].sum())):
        mask[shape] = number
    return mask


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels (H, W) of a segmentation of COCO: a list of polygons, or run lengths. Raises ValueError."""
    if isinstance(segmentation, list) and segmentation:
        inside = np.zeros((height, width), bool)
        for polygon in segmentation:
            if not _are_numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(
                    f"has the polygon {polygon!r:.80}; it must be [x, y, x, y, x, y ...], 3 points or more"
                )
            inside |= fill_polygon(np.array(polygon, float).reshape(-1, 2), height, width)
        return inside
    if isinstance(segmentation, dict) and segmentation.get("size") == [height, width]:
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            counts = unpack_counts(counts)
        if isinstance(counts, list) and all(isinstance(n, int) and n >= 0 for n in counts):
            if sum(counts) == height * width:
                values = np.arange(len(counts)) % 2 == 1  # runs of 0 and of 1 in turn, down the columns
                return np.repeat(values, counts).reshape(width, height).T
            raise ValueError(f"has runs of {sum(counts)} pixels in all, for an image of {height * width}")
    raise ValueError(
        f"is {segmentation!r:.80}; it must be a list of polygons, or run lengths of the size [{height}, {width}]"
    )


def fill_polygon(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels (H, W) whose centres lie inside a polygon with these corners x, y (n, 2).

    A centre lies inside if a ray to its left crosses the edges an odd number of times.
    """
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    inside = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        rows = np.flatnonzero((y0 <= y) != (y1 <= y))
        crossing = x0 + (y[rows] - y0) * ((x1 - x0) / (y1 - y0)) if len(rows) else y[rows]
        inside[rows] ^= crossing[:, None] <= x
    return inside


def unpack_counts(text: str) -> list[int]:
    """Return the run lengths in COCO's packed text. Raises ValueError.

    Each is written in digits of 5 bits, the lowest first, as characters from "0"; the bit of value 32 says that another
    digit follows, and the sign is that of the last digit. From the fourth on, they are differences to the one before
    the last.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ValueError(f"has counts that are no packed run lengths: {text!r:.60}")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value, shift = 0, 0
    if shift:
        raise ValueError(f"has counts that end in the middle of a number: {text!r:.60}")
    return counts
