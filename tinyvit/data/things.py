"""Data sets with masks or boxes by name: generated scenes and canvases, and files of one's own."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DataError
from . import scenes
from .canvas import draw_canvases
from .coco import coco_boxes, coco_masks
from .datasets import SPLITS
from .dense import BACKGROUND, BoxDataset, MaskDataset, padded_boxes
from .masks import mask_folder
from .sources import check_name
from .texts import PAIR_KINDS, SCENE_STATISTICS

DIGITS = tuple("0123456789")
PAIRS = tuple(f"{colour} {shape}" for colour in scenes.COLOURS for shape in scenes.SHAPES)


def load_masks(name: str, split: str, image_size: int | None = None) -> MaskDataset:
    """Load one split of a data set with masks.

    Parameters
    ----------
    name : str
        One of `THINGS`, ``folder:PATH`` (see `tinyvit.data.masks`), or ``coco:PATH`` (see `tinyvit.data.coco`).
    split : {"train", "test"}
    image_size : int, optional
        Height and width in pixels, for files of one's own.

    Raises
    ------
    DataError
        If the name is unknown or files are missing or damaged.
    """
    _check(name, split, image_size)
    kind, _, path = name.partition(":")
    if kind == "folder":
        return mask_folder(path, split, image_size)
    if kind == "coco":
        return coco_masks(path, split, image_size)
    return THINGS[name][0](split)


def load_boxes(name: str, split: str, image_size: int | None = None) -> BoxDataset:
    """Load one split of a data set with boxes: one of `THINGS`, or ``coco:PATH``; otherwise like `load_masks`."""
    _check(name, split, image_size)
    kind, _, path = name.partition(":")
    if kind == "folder":
        raise DataError(f"{name}: a folder of masks has no boxes; give coco:PATH, annotations in the format of COCO")
    return coco_boxes(path, split, image_size) if kind == "coco" else THINGS[name][1](split)


def _check(name: str, split: str, image_size: int | None) -> None:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; a data set has the splits 'train' and 'test'")
    if name.startswith(("folder:", "coco:")):
        return
    check_name(name)
    if name not in THINGS:
        raise DataError(
            f"{name} has no masks or boxes; data sets that have: {', '.join(THINGS)}, folder:PATH (masks) and coco:PATH"
        )
    if image_size is not None:
        raise DataError(f"image_size is {image_size}; the images of {name} have a fixed size")


def _scene_parts(split: str) -> tuple[scenes.Scenes, dict[str, Any]]:
    """Return the scenes of a split, and what data sets of them have in common."""
    parts = scenes.of_split(split)
    return parts, {
        "split": split,
        "images": scenes.render(parts.all),
        "mean": SCENE_STATISTICS[0],
        "std": SCENE_STATISTICS[1],
        "kinds": PAIR_KINDS,
        "kind_of": (np.arange(len(parts.all)) >= len(parts.seen)).astype(np.int64),
        "apart": PAIR_KINDS[1:],
    }


def _scene_masks(name: str, classes: tuple[str, ...], number: Callable[[scenes.Thing], int], split: str) -> MaskDataset:
    parts, shared = _scene_parts(split)
    masks = scenes.masks(parts.all)
    for mask, scene in zip(masks, parts.all, strict=True):
        mask[...] = np.array([0, *(number(thing) + 1 for thing in scene)], np.uint8)[mask]
    return MaskDataset(name=name, masks=masks, classes=(BACKGROUND, *classes), **shared)


def _scene_boxes(name: str, classes: tuple[str, ...], number: Callable[[scenes.Thing], int], split: str) -> BoxDataset:
    parts, shared = _scene_parts(split)
    labels = [np.array([number(thing) for thing in scene], np.int64) for scene in parts.all]
    boxes, all_labels = padded_boxes([scenes.boxes(scene) for scene in parts.all], labels)
    return BoxDataset(name=name, boxes=boxes, labels=all_labels, classes=classes, **shared)


def _canvas(split: str) -> dict[str, Any]:
    return {"name": "canvas", "split": split, "mean": (0.076,), "std": (0.244,)}  # of the train split


def _canvas_masks(split: str) -> MaskDataset:
    drawn = draw_canvases(split)
    none = np.zeros(len(drawn.images), np.int64)
    return MaskDataset(
        images=drawn.images, masks=drawn.masks, classes=(BACKGROUND, *DIGITS), kind_of=none, **_canvas(split)
    )


def _canvas_boxes(split: str) -> BoxDataset:
    drawn = draw_canvases(split)
    none = np.zeros(len(drawn.images), np.int64)
    boxes, labels = padded_boxes(drawn.boxes, drawn.labels)
    return BoxDataset(images=drawn.images, boxes=boxes, labels=labels, classes=DIGITS, kind_of=none, **_canvas(split))


def _shape(thing: scenes.Thing) -> int:
    return scenes.SHAPES.index(thing.shape)


def _pair(thing: scenes.Thing) -> int:
    return PAIRS.index(" ".join(thing.pair))


# The functions that load masks and boxes.
THINGS: dict[str, tuple[Callable[[str], MaskDataset], Callable[[str], BoxDataset]]] = {
    "scenes-shapes": (
        lambda split: _scene_masks("scenes-shapes", scenes.SHAPES, _shape, split),
        lambda split: _scene_boxes("scenes-shapes", scenes.SHAPES, _shape, split),
    ),
    "scenes-pairs": (
        lambda split: _scene_masks("scenes-pairs", PAIRS, _pair, split),
        lambda split: _scene_boxes("scenes-pairs", PAIRS, _pair, split),
    ),
    "canvas": (_canvas_masks, _canvas_boxes),
}
