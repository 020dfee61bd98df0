"""Using models of images and texts: answers, captions, searches, and where each word looks.

Images are brought to the size and the channels of the model by the rules of `tinyvit.data.read_image`. A text with
words that the model never read is refused, and so is one that is empty or longer than those it learnt from.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import functional as F
from .checkpoint import atomic_write
from .context import no_grad
from .data import normalize
from .data.datasets import IMAGE_SUFFIXES
from .data.texts import question_ids
from .data.tokenizer import END, MASK, START
from .errors import DataError
from .models import beam_search
from .nn import keep_attention
from .run.evaluate import read_for
from .run.folder import RunError, TrainedModel

COMMANDS = {"classify": "predict", "vqa": "ask", "caption": "caption", "retrieve": "retrieve"}
BEAMS = 4
_SOFTWARE = "tinyvit"  # in the pictures drawn here


@dataclass(frozen=True)
class Looks:
    """Where each word looks: `maps` (words, rows, columns) over `pixels` (C, H, W), or None without attention."""

    pixels: np.ndarray
    words: list[str]
    maps: np.ndarray | None


def require_kind(trained: TrainedModel, kind: str) -> None:
    """Raise RunError, with the right command, for a run of another kind."""
    own = trained.recipe.task.kind
    if own != kind:
        way = f"use `tinyvit {COMMANDS[own]}`" if own in COMMANDS else "only `tinyvit evaluate` is for it"
        raise RunError(f"this run is of the kind {own!r}, and this command for {kind!r}: {way}")


@no_grad()
def ask(trained: TrainedModel, path: str | Path, question: str) -> tuple[str, float, Looks]:
    """The answer to a question about an image file, its probability, and where the words look. Raises DataError."""
    require_kind(trained, "vqa")
    model: Any = trained.model
    data = trained.data
    pixels, ids = read_for(data, path), _read(trained, question)
    with keep_attention(model) as kept:
        probabilities = F.softmax(model(_seen(trained, pixels), ids)).numpy()[0]
    best, words = int(probabilities.argmax()), [data.words[i] for i in ids[0]]
    return data.classes[best], float(probabilities[best]), Looks(pixels, words, _last_map(trained, kept, len(words)))


@no_grad()
def caption(trained: TrainedModel, path: str | Path) -> tuple[str, Looks]:
    """What is on an image file, and where the model looked as it wrote each word. Raises DataError."""
    require_kind(trained, "caption")
    model: Any = trained.model
    data = trained.data
    pixels = read_for(data, path)
    context, mask = model.encode(_seen(trained, pixels))
    (ids,) = beam_search(model.decoder, context, mask, data.lengths[1] - 1, BEAMS)
    with keep_attention(model.decoder) as kept:
        model.decoder(np.array([[START, *ids]]), context, mask)
    words = [data.tokenizer.words[i] for i in [*ids, END]]
    return data.tokenizer.decode(ids), Looks(pixels, words, _last_map(trained, kept, len(words)))


@no_grad()
def retrieve(trained: TrainedModel, folder: str | Path, text: str) -> tuple[list[tuple[Path, float]], Looks]:
    """The image files of a folder, those that fit the text best first, each with its cosine; and where its words look.

    A word looks at the patches of the best image that are less like the text when it is `<mask>` instead. Raises
    DataError.
    """
    require_kind(trained, "retrieve")
    model: Any = trained.model
    data = trained.data
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder")
    paths = [path for path in sorted(Path(folder).iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    paths = [path for path in paths if not is_drawn(path)]  # what an earlier search drew
    if not paths:
        raise DataError(f"{folder} holds no images ({' '.join(IMAGE_SUFFIXES)})")
    ids = _read(trained, text, begin=START, end=END)
    pixels = np.stack([read_for(data, path) for path in paths])
    images = normalize(pixels, data.mean, data.std)
    rows = [model.encode_images(images[i : i + 64]).numpy() for i in range(0, len(images), 64)]
    cosines = np.concatenate(rows) @ model.encode_texts(ids).numpy()[0]
    order = np.argsort(-cosines, kind="stable")
    patches = model.image_proj(model.vision.features(images[order[:1]])).numpy()[0]
    without = np.repeat(ids, ids.shape[1] - 2, axis=0)  # the words between <start> and <end>, each left out once
    np.fill_diagonal(without[:, 1:], MASK)
    lost = (model.encode_texts(ids).numpy() - model.encode_texts(without).numpy()) @ patches.T
    words = [data.tokenizer.words[i] for i in ids[0, 1:-1]]
    looks = Looks(pixels[order[0]], words, _on_grid(trained, np.maximum(lost, 0)))
    return [(paths[i], float(cosines[i])) for i in order], looks


def _seen(trained: TrainedModel, pixels: np.ndarray) -> np.ndarray:
    return normalize(pixels[None], trained.data.mean, trained.data.std)


def _read(trained: TrainedModel, text: str, begin: int | None = None, end: int | None = None) -> np.ndarray:
    """The numbers of the words of a user's text, (1, N)."""
    tokenizer, longest = trained.data.tokenizer, trained.data.lengths[0]
    ids = question_ids(tokenizer, [text])
    if begin is not None:
        ids = np.array([[begin, *ids[0, 1:], end]])
    special = 1 if end is None else 2
    if ids.shape[1] == special:
        raise DataError("the text is empty; give some words")
    if unknown := tokenizer.unknown(text):
        raise DataError(f"the text has words that this model never read: {', '.join(dict.fromkeys(unknown))}")
    if ids.shape[1] > longest:
        raise DataError(
            f"the text has {ids.shape[1] - special} words and marks; this model reads up to {longest - special}"
        )
    return ids


def _last_map(trained: TrainedModel, kept: dict[str, list[np.ndarray]], words: int) -> np.ndarray | None:
    """Of the last layer in which words look at patches, the mean over its heads: (words, rows, columns)."""
    onto = [name for name in kept if name.endswith(".cross") and kept[name]]
    joint = [name for name in kept if name.startswith("fusion.encoder.") and kept[name]]
    if onto:
        return _on_grid(trained, kept[onto[-1]][-1][0].mean(axis=0))
    if joint and trained.recipe.task.fusion == "joint":
        return _on_grid(trained, kept[joint[-1]][-1][0].mean(axis=0)[:words, words:])
    return None


def _on_grid(trained: TrainedModel, weights: np.ndarray) -> np.ndarray:
    """Weights (words, tokens of the image) as maps; tokens before the patches are left out."""
    vision: Any = trained.model.vision  # type: ignore[attr-defined]
    return weights[:, vision.prefix :].reshape(len(weights), *vision.patch_embed.grid)


def is_drawn(path: Path) -> bool:
    """Whether a file is a picture by `draw_looks`."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Software") == _SOFTWARE
    except OSError:
        return False


def require_free(path: Path) -> None:
    """Raise DataError where a picture would replace a file that is none of ours: an image, a run's weights."""
    if path.exists() and not is_drawn(path):
        raise DataError(f"--out is {path}, a file that this program did not draw; name another")


def draw_looks(path: Path, looks: Looks, title: str) -> None:
    """Draw the image, and once more for each word, bright where the word looks, as a PNG. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = looks.pixels.transpose(1, 2, 0) / 255
    image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    pictures: list[Any] = [("", image)]
    if looks.maps is not None:
        rows, columns = (n // m for n, m in zip(image.shape[:2], looks.maps.shape[1:], strict=True))
        for word, weights in zip(looks.words, looks.maps, strict=True):
            light = np.kron(weights / (weights.max() or 1), np.ones((rows, columns)))[..., None]
            pictures.append((word, image * (0.2 + 0.8 * light)))
    across = min(8, len(pictures))
    down = -(-len(pictures) // across)
    figure = Figure(figsize=(1.5 * across, 1.7 * down + 0.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, parse_math=False)
    for axes, picture in zip(
        figure.subplots(down, across, squeeze=False).flat, pictures + [None] * across, strict=False
    ):
        axes.set_axis_off()
        if picture is not None:
            axes.imshow(picture[1], interpolation="nearest")
            axes.set_title(picture[0], fontsize=9, parse_math=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": _SOFTWARE})
    atomic_write(path, drawn.getvalue())
