"""Use models of segmentation and detection on image files, and draw what they find.

A model looks at the largest centred square of an image (see `tinyvit.data.read_image`); what it finds is given for the
whole image, in its own pixels.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import functional as F
from .backend.words import counted
from .checkpoint import atomic_write
from .context import no_grad
from .data import normalize, read_image
from .data.augment import IGNORED
from .errors import DataError
from .nn import keep_attention
from .run.curves import own_style
from .run.folder import TrainedModel
from .tasks.detect import found_boxes
from .use import SOFTWARE, is_drawn, require_free, require_kind

__all__ = ["Detected", "Found", "Segmented", "detect", "segment"]

LEAST_SCORE = 0.5  # of the boxes that are shown
_LARGEST = 1024  # pixels on a side at which masks are computed; those of larger images are enlarged
_COLOURS = (
    *((230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240)),
    *((240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (220, 190, 255), (170, 110, 40), (255, 250, 200)),
    *((128, 0, 0), (170, 255, 195), (128, 128, 0), (255, 215, 180), (0, 0, 128), (128, 128, 128)),
)


@dataclass(frozen=True)
class Segmented:
    """An image and the class of each of its pixels.

    Attributes
    ----------
    pixels : uint8 (H, W, 3)
    mask : uint8 (H, W), indices into `classes`; `IGNORED` outside of the square that the model saw.
    classes : their names, the first of them the background.
    """

    pixels: np.ndarray
    mask: np.ndarray
    classes: tuple[str, ...]

    def shares(self) -> list[tuple[str, float]]:
        """Return the classes that were found, and their shares of the pixels that the model saw, largest first."""
        counts = np.bincount(self.mask[self.mask != IGNORED], minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return [(self.classes[i], float(counts[i] / counts.sum())) for i in order if counts[i]]


@dataclass(frozen=True)
class Found:
    """One thing that was found: its class, the probability, its box in pixels, and where its query looked.

    The box is (left, top, right, bottom); `looked` (rows, columns) has the attention to each patch of the square that
    the model saw, as a mean over the heads of the last block.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    looked: np.ndarray


@dataclass(frozen=True)
class Detected:
    """An image, uint8 (H, W, 3), the things that were found in it, best first, and the part that the model saw.

    The part is given by its left and top edge, its width and its height in pixels.
    """

    pixels: np.ndarray
    things: list[Found]
    seen: tuple[int, int, int, int]


@no_grad()
def segment(trained: TrainedModel, path: str | Path) -> Segmented:
    """Return the class of each pixel of an image file. Raises DataError."""
    require_kind(trained, "segment")
    data = trained.data
    logits = trained.model(normalize(data.read_image(path)[None], data.mean, data.std))
    pixels = _whole(path)
    left, top, width, height = _seen(pixels, data.shape)
    size = (min(height, _LARGEST), min(width, _LARGEST))
    classes = F.interpolate(logits.transpose(0, 3, 1, 2), size).numpy()[0].argmax(axis=0).astype(np.uint8)
    rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), size, strict=True))
    mask = np.full(pixels.shape[:2], IGNORED, np.uint8)
    mask[top : top + height, left : left + width] = classes[rows[:, None], columns]
    return Segmented(pixels, mask, data.classes)


@no_grad()
def detect(trained: TrainedModel, path: str | Path, least: float = LEAST_SCORE) -> Detected:
    """Return the things in an image file whose probability is at least `least`. Raises DataError."""
    require_kind(trained, "detect")
    model: Any = trained.model
    data = trained.data
    with keep_attention(model.decoder) as kept:
        outputs = model(normalize(data.read_image(path)[None], data.mean, data.std))
    (found,) = found_boxes(*outputs)
    assert found.scores is not None
    weights = kept[max(name for name in kept if name.endswith(".cross"))][-1][0].mean(axis=0)  # (Q, N)
    pixels = _whole(path)
    left, top, width, height = _seen(pixels, data.shape)
    corners = np.clip(found.corners, 0, 1) * [width, height, width, height] + [left, top, left, top]
    things = [
        Found(
            data.classes[found.labels[i]],
            float(found.scores[i]),
            tuple(round(float(x), 2) for x in corners[i]),  # type: ignore[arg-type]
            weights[i].reshape(model.vision.patch_embed.grid),
        )
        for i in np.argsort(-found.scores, kind="stable")
        if found.scores[i] >= least
    ]
    return Detected(pixels, things, (left, top, width, height))


def _whole(path: str | Path) -> np.ndarray:
    """Return all pixels of an image file in colour, (H, W, 3)."""
    return read_image(path, 3).transpose(1, 2, 0)


def _seen(pixels: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return what a model of images of a shape (C, H, W) sees of an image: left, top, width and height in pixels."""
    height, width = pixels.shape[:2]
    if (height, width) == shape[1:]:
        return 0, 0, width, height
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


# Drawing ------------------------------------------------------------------------------------------------------------


def colour_of(number: int) -> tuple[int, int, int]:
    """Return the colour in which a class, counted without the background, is drawn."""
    return _COLOURS[number % len(_COLOURS)]


def overlay_of(out: Path) -> Path:
    """Return where the picture that goes with a mask at `out` is drawn."""
    return out.with_name(f"{out.stem}-overlay.png")


def json_of(out: Path) -> Path:
    """Return where the boxes that are drawn at `out` are listed."""
    return out.with_suffix(".json")


def require_free_pair(out: Path, other: Path) -> None:
    """Raise DataError if writing `out`, a PNG, and the file beside it would replace any other file than earlier ones.

    A list of boxes counts as an earlier one if the picture beside it does.
    """
    if out.suffix.lower() != ".png":
        raise DataError(f"--out is {out}; what is drawn is a PNG, so its name must end in .png")
    require_free(out)
    if other.exists() and not (is_drawn(other) if other.suffix == ".png" else is_drawn(out)):
        raise DataError(
            f"--out is {out}, but {other} beside it is a file that this program did not write; name another"
        )


def write_mask(out: Path, found: Segmented) -> None:
    """Write the mask as an indexed PNG whose values are the numbers of the classes, and the overlay beside it."""
    from PIL import Image

    image = Image.fromarray(found.mask, "P")
    palette = np.full((256, 3), 255, np.uint8)
    palette[: len(found.classes)] = [(0, 0, 0), *(colour_of(i) for i in range(len(found.classes) - 1))]
    image.putpalette(palette.tobytes())
    _save(out, image)
    seen = (found.mask != 0) & (found.mask != IGNORED)
    mixed = np.where(seen[..., None], 0.45 * found.pixels + 0.55 * palette[found.mask], found.pixels)
    mixed = np.where((found.mask == IGNORED)[..., None], 0.4 * found.pixels, mixed)
    _save(overlay_of(out), Image.fromarray(np.rint(mixed).astype(np.uint8)))


def _save(path: Path, image: Any) -> None:
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text("Software", SOFTWARE)
    written = io.BytesIO()
    image.save(written, "PNG", pnginfo=about)
    atomic_write(path, written.getvalue())


def write_boxes(out: Path, found: Detected, image: str | Path) -> None:
    """Draw the boxes, and for each thing where its query looked, as a PNG; list the boxes in JSON beside it."""
    height, width = found.pixels.shape[:2]
    listed = [{"class": one.name, "score": round(one.score, 4), "box": list(one.box)} for one in found.things]
    contents = {"image": str(image), "width": width, "height": height, "boxes": listed, "software": SOFTWARE}
    atomic_write(json_of(out), (json.dumps(contents, indent=1) + "\n").encode())
    draw_boxes(out, found)


@own_style()
def draw_boxes(path: Path, found: Detected) -> None:
    """Draw the image with all boxes, then for each thing the image lit by the attention of its query."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(6, 1 + len(found.things))
    down = -(-(1 + len(found.things)) // across)
    figure = Figure(figsize=(2.2 * across, 2.5 * down), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for number, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
        axes.set_axis_off()
        if number > len(found.things):
            continue
        things = found.things if number == 0 else found.things[number - 1 : number]
        picture = found.pixels / 255 if number == 0 else _lit(found, found.things[number - 1].looked)
        axes.imshow(picture, interpolation="nearest", extent=(0, picture.shape[1], picture.shape[0], 0))
        title = f"{len(things)} found" if number == 0 else f"{things[0].name} {things[0].score:.2f}"
        axes.set_title(title, fontsize=9, parse_math=False)
        for place, thing in enumerate(things):
            _draw_box(axes, thing, number - 1 if number else place)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": SOFTWARE})
    atomic_write(path, drawn.getvalue())


def _draw_box(axes: Any, thing: Found, number: int) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = thing.box
    colour = [part / 255 for part in colour_of(number)]
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.6))
    axes.annotate(
        f"{thing.name} {thing.score:.2f}", (left, top), xytext=(0, 2), textcoords="offset points", fontsize=6,
        color="black", bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8}, parse_math=False,
    )  # fmt: skip


def _lit(found: Detected, weights: np.ndarray) -> np.ndarray:
    """Return the image (H, W, 3), dark where a query did not look."""
    left, top, width, height = found.seen
    light = np.zeros(found.pixels.shape[:2])
    rows, columns = np.arange(height) * len(weights) // height, np.arange(width) * len(weights[0]) // width
    light[top : top + height, left : left + width] = (weights / (weights.max() or 1))[rows[:, None], columns]
    return found.pixels / 255 * (0.25 + 0.75 * light[..., None])


# Samples of a data set ----------------------------------------------------------------------------------------------


def has_masks_or_boxes(name: str) -> bool:
    """Return whether `name` is that of a data set with masks or boxes."""
    from .data.things import THINGS

    return name in THINGS or name.startswith(("folder:", "coco:"))


def draw_samples(path: Path, name: str, image_size: int | None = None, count: int = 12) -> list[str]:
    """Draw the first images of the train split of a data set with masks or boxes; return its figures, in lines.

    Loading both splits checks all files. Raises DataError, also if another file would be overwritten.
    """
    from PIL import Image

    from .data import load_boxes, load_masks
    from .data.dense import NO_BOX

    require_free(path)
    lines, rows = [], []
    for split in ("train", "test"):
        masks = load_masks(name, split, image_size)
        boxes = None if name.startswith("folder:") else load_boxes(name, split, image_size)
        height, width = masks.images.shape[2:]
        there = "" if boxes is None else f", {counted(int((boxes.labels != NO_BOX).sum()), 'boxes')}"
        lines.append(
            f"{name} {split}: {counted(len(masks), 'images')} of {width} x {height} pixels, "
            f"{counted(len(masks.classes), 'classes')}{there}"
        )
        if split == "test":
            continue
        lines.append(f"classes: {', '.join(masks.classes)}")
        for i in range(min(count, len(masks))):
            image = masks.images[i].transpose(1, 2, 0)
            image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
            framed = image if boxes is None else _framed(image, boxes.boxes[i], boxes.labels[i])
            rows.append(np.concatenate([image, _coloured(masks.masks[i]), framed], axis=1))
    _save(path, Image.fromarray(np.concatenate(list(_in_columns(rows, 3)), axis=0)))
    return lines


def _coloured(mask: np.ndarray) -> np.ndarray:
    palette = np.array([(0, 0, 0), *(colour_of(i) for i in range(255))], np.uint8)
    palette[IGNORED] = 255
    return palette[mask]


def _framed(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) with the edges of its boxes, in pixels."""
    framed = image.copy()
    height, width = image.shape[:2]
    for box, label in zip(boxes, labels, strict=True):
        if label >= 0:
            left, top = np.floor(box[:2]).astype(int)
            right, bottom = np.minimum(np.ceil(box[2:]).astype(int), [width, height]) - 1
            for part in (np.s_[top, left : right + 1], np.s_[bottom, left : right + 1], np.s_[top : bottom + 1, left],
                         np.s_[top : bottom + 1, right]):  # fmt: skip
                framed[part] = colour_of(label)
    return framed


def _in_columns(pictures: Sequence[np.ndarray], across: int) -> Iterator[np.ndarray]:
    """Yield rows of so many pictures side by side; the last one is filled up with black."""
    for start in range(0, len(pictures), across):
        some = list(pictures[start : start + across])
        some += [np.zeros_like(pictures[0])] * (across - len(some))
        yield np.concatenate(some, axis=1)
