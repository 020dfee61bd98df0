"""Export a classifier of images as a web page to draw on, and say how drawings are prepared for each data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Resize
from ..errors import TinyvitError
from ..models import ViT
from ..nn import keep_attention
from ..program.program import freeze_function
from ..program.web import PAGE, Contents, export_page
from ..tasks import DataSpec
from .folder import RunError, TrainedModel, load_test_data
from .pretrained import NAME as PRETRAINED

EXAMPLES = 10  # images of the test split that are on the page
_WHOLE = "The whole drawing is scaled to {width} x {height} pixels."
_MASS = (
    "A drawing is prepared as the images of MNIST were: its ink is scaled to fit 20 x 20 pixels, and placed with its "
    "centre of mass in the middle of 28 x 28 pixels."
)
_FILLED = "The drawing is scaled so that its longer side has 28 pixels, and centred, as the images of the data set are."
_CELLS = (
    "A drawing is prepared as the images of the data set were: its ink is scaled to a height of 32 small squares and "
    "centred, and each of the 8 x 8 pixels says how many of its 4 x 4 small squares have ink."
)
# By the data set: how the page makes an image of a drawing (assets/prepare.js of tinyvit.program), and the width of the
# pen as a share of the drawing area. Other data sets take the whole drawing.
DRAWINGS: dict[str, dict[str, Any]] = {
    "mnist": {"kind": "mass", "box": 20, "pen": 0.08, "text": _MASS},
    "fashion-mnist": {"kind": "box", "box": 28, "pen": 0.1, "text": _FILLED},
    "digits": {"kind": "rows", "wide": 6, "cells": 4, "pen": 0.12, "text": _CELLS},
}
_UNKNOWN_FILTERS = ("nearest",)


def to_web(trained: TrainedModel, out: Path, int8: bool = False) -> str:
    """Write a folder with a page on which to draw for a model; return what was written, in words.

    Raises RunError if the run does not classify single images, and ExportError if there is no compiler.
    """
    kind, data = trained.recipe.task.kind, trained.data
    if kind != "classify" or len(data.shape) != 3 or not isinstance(trained.model, ViT) or not data.classes:
        what = "classifies videos" if len(data.shape) == 4 else f"is a {kind!r} run"
        what = "has no classes" if kind == "classify" and not data.classes else what
        raise RunError(f"a page to draw on is for runs that classify images, but this one {what}; use --to onnx or c")
    dataset = _test_data(trained)
    examples = [] if dataset is None else _examples(dataset)
    checks = [x for x, _, _ in examples] or np.random.default_rng(0).integers(0, 256, (1, *data.shape), np.uint8)
    contents = contents_of(trained, examples)
    written = export_page(program_of(trained), out, contents, np.stack(list(checks)), int8)
    return f"{written}\nnext: open {out / PAGE} in a browser"


def program_of(trained: TrainedModel) -> Any:
    """Freeze a ViT with its maps of attention: images (B, C, H, W) -> logits (B, K), then maps (B, H, N, N)."""
    model = trained.model

    def function(images: Any) -> Any:
        with keep_attention(model) as kept:
            logits = model(images)
        return (logits, *(maps[-1] for maps in kept.values() if maps))

    example = np.zeros((2, *trained.data.shape), np.float32)
    return freeze_function(function, {"images": example}, model, {"images": ("B", None, None, None)})


def contents_of(trained: TrainedModel, examples: list[tuple[np.ndarray, int, str]]) -> Contents:
    """Return what the page of a run says, and how it prepares images."""
    model: Any = trained.model
    data, about = trained.data, trained.recipe.about
    channels, height, width = data.shape
    is_number = all(len(name) == 1 and name.isdigit() for name in data.classes)
    task = f"Draw a digit from {data.classes[0]} to {data.classes[-1]}" if is_number else "Draw, or open a picture"
    name = trained.recipe.data.name
    rule = DRAWINGS.get(name, {"kind": "whole", "pen": 0.06, "text": _WHOLE.format(width=width, height=height)})
    mean, std = np.array(data.mean, np.float64), np.array(data.std, np.float64)
    parameters = sum(p.data.size for p in model.parameters())
    reads, reader = _reader(model)
    return Contents(
        title=(Path(about.title).name if name == PRETRAINED else about.title) or f"A model of {name}",
        summary=f"{task}, and watch how a Vision Transformer names it and where its attention goes.",
        task=task,
        hint="Draw here",
        empty="Nothing is drawn yet.",
        classes=data.classes,
        shape=(channels, height, width),
        scale=(1 / (255 * std)).tolist(),
        offset=(mean / std).tolist(),
        drawing=rule,
        picture=_picture(data),
        grid=model.patch_embed.grid,
        prefix=model.prefix,
        reads=reads,
        reader=reader,
        examples=examples,
        facts=(
            f"A Vision Transformer of {parameters:,} parameters, trained with tinyvit and compiled to WebAssembly.",
            "A picture from a file is prepared as the command tinyvit predict does it.",
        ),
    )


def _reader(model: Any) -> tuple[list[int], str]:
    """Return the tokens that the class is read from, and which they are in words."""
    patches = model.patch_embed.grid[0] * model.patch_embed.grid[1]
    if model.pool in ("cls", "cls_mean"):
        tokens, name = [0], "the class token"
    elif model.pool == "first":
        tokens, name = [model.prefix], "the first patch"
    else:
        tokens, name = list(range(model.prefix, model.prefix + patches)), "all patches, as a mean"
    return tokens, f"Shown is the attention of {name}: the class is read from there. Choose a patch to see its own."


def _picture(data: DataSpec) -> Mapping[str, Any] | None:
    """Return the rule for pictures from files; None for that of `tinyvit.data.images`."""
    if not data.resize:
        return None
    rule = Resize.of_state(data.resize, data.mean)
    if rule.interpolation in _UNKNOWN_FILTERS or rule.crop_mode == "border":
        raise RunError(
            f"the images of this model are resized by {rule.interpolation!r} with crop_mode {rule.crop_mode!r}, which "
            "the page has no form of; use --to onnx or c"
        )
    return {"filter": rule.interpolation, "share": rule.crop_pct, "squash": rule.crop_mode == "squash"}


def _test_data(trained: TrainedModel) -> Any:
    """Return the test split of a run, or None where it is not there."""
    try:
        return load_test_data(trained)
    except (TinyvitError, OSError):
        return None


def _examples(dataset: Any) -> list[tuple[np.ndarray, int, str]]:
    """Return the first test image of each class, of the first classes, with label and name."""
    found: dict[int, int] = {}
    for i, label in enumerate(dataset.labels.tolist()):
        found.setdefault(label, i)
    chosen = sorted(found)[:EXAMPLES]
    return [(np.asarray(dataset.images[found[c]]), c, f"test image {found[c] + 1}") for c in chosen]
