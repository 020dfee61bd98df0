"""Use a trained model: measure it, name an image, answer, write, find images; draw where words attend.

Images are brought to the size and the channels of the model by the rules of `tinyvit.data.read_image`. A text is
refused if it is empty, has words that the model does not know, or is longer than the texts the model was trained on.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import functional as F
from .backend.files import missing
from .checkpoint import atomic_write
from .context import no_grad
from .data import normalize
from .data.image_files import (
    IMAGE_SUFFIXES,
    NOT_AN_IMAGE,
    LeftOut,
    find_images,
    listed_files,
    read_files,
    warn_of_left_out,
)
from .data.images import open_image
from .data.sounds import SOUND_SUFFIXES, find_sounds
from .data.texts import question_ids
from .data.tokenizer import END, MASK, START
from .errors import DataError, log
from .models import beam_search
from .program.decode import serving_steps
from .program.serve import served, served_with_attention, serving
from .run.curves import own_style
from .run.folder import RunError, TrainedModel, load_test_data
from .run.results import USES
from .tasks import DataSpec, Report, task_of

__all__ = ["Found", "WordMaps", "ask", "caption", "evaluate", "evaluated", "predict", "retrieve", "search", "translate"]

BEAMS = 4
_BATCH = 64  # images that are encoded at a time
SOFTWARE = "tinyvit"  # marks the pictures that are drawn here


@dataclass(frozen=True)
class WordMaps:
    """For each word a map of the image: `maps` (words, rows, columns) over `pixels` (C, H, W), or None."""

    pixels: np.ndarray
    words: list[str]
    maps: np.ndarray | None


class Found(NamedTuple):
    """The images that a search found with their cosines, best first, maps of the best, files that cannot be read."""

    found: list[tuple[Path, float]]
    maps: WordMaps
    broken: list[LeftOut]


def require_kind(trained: TrainedModel, kind: str) -> None:
    """Raise RunError, with the right command, if the run is of another kind than `kind`."""
    own = trained.recipe.task.kind
    if own != kind:
        way = f"use `tinyvit {USES[own][0]}`" if own in USES else "use `tinyvit evaluate`, the only one for it"
        raise RunError(f"this is a {own!r} run, but the command needs a {kind!r} run: {way}")


def evaluate(trained: TrainedModel) -> str:
    """Return a report on the test split of the data that a model was trained on. Raises DataError if that changed."""
    dataset, report = _measured(trained)
    return task_of(trained.recipe).describe(report, len(dataset))


def evaluated(trained: TrainedModel) -> dict[str, Any]:
    """Return the figures of that report as values for JSON, with those of each class and the confusion matrix."""
    dataset, report = _measured(trained)
    found = {"data": trained.recipe.data.name, "samples": len(dataset), **report.figures()}
    found["split"] = "test"
    if report.confusion is not None:
        found |= {"classes": report.by_class(), "confusion": report.confusion.tolist()}
    return found


def _measured(trained: TrainedModel) -> tuple[Any, Report]:
    dataset = load_test_data(trained)
    with serving(trained.model, "forward", "encode"), serving_steps(trained.model):
        report = task_of(trained.recipe).evaluate(trained.model, dataset, trained.recipe.data.batch_size)
    return dataset, report


@no_grad()
def predict(trained: TrainedModel, path: str | Path) -> tuple[str, float]:
    """Return the most probable class of an image file, by name, and its probability. Raises DataError."""
    require_kind(trained, "classify")
    return trained.predict(path)[0][0]


@no_grad()
def ask(trained: TrainedModel, path: str | Path, question: str) -> tuple[str, float, WordMaps]:
    """Return the answer to a question about an image file, its probability, and where each word attends.

    Raises DataError.
    """
    require_kind(trained, "vqa")
    model, data = trained.model, trained.data
    pixels, ids = data.read_image(path), _read_text(data, question)
    warn_of_unlike([(path, data.unlike(pixels))])
    logits, weights = served_with_attention(model)(_as_input(data, pixels), ids)
    probabilities = F.softmax(logits).numpy()[0]
    best, words = int(probabilities.argmax()), [data.words[i] for i in ids[0]]
    maps = WordMaps(pixels, words, _attention_maps(trained, weights, len(words)))
    return data.classes[best], float(probabilities[best]), maps


@no_grad()
def caption(trained: TrainedModel, path: str | Path) -> tuple[str, WordMaps]:
    """Return a caption of an image file, and where the model attended as it wrote each word. Raises DataError."""
    require_kind(trained, "caption")
    model: Any = trained.model
    data = trained.data
    pixels = data.read_image(path)
    warn_of_unlike([(path, data.unlike(pixels))])
    ids, context, mask = _written(trained, _as_input(data, pixels))
    _, weights = served_with_attention(model.decoder)(np.array([[START, *ids]]), context, mask)
    words = [data.words[i] for i in [*ids, END]]
    return data.tokenizer.decode(ids), WordMaps(pixels, words, _attention_maps(trained, weights, len(words)))


@no_grad()
def translate(trained: TrainedModel, text: str) -> str:
    """Return the text that a model writes for a text. Raises DataError."""
    require_kind(trained, "translate")
    ids, _, _ = _written(trained, _read_text(trained.data, text))
    return trained.data.tokenizer.decode(ids)


def _written(trained: TrainedModel, given: Any) -> tuple[list[int], Any, Any]:
    """Return the text that a model writes for an image or a text, as ids, and what its decoder read: context, mask."""
    model: Any = trained.model
    context, mask = served(model, "encode")(given)
    with serving_steps(model):
        (ids,) = beam_search(model.decoder, context, mask, trained.data.lengths[1] - 1, BEAMS)
    return ids, context, mask


def retrieve(trained: TrainedModel, folder: str | Path, text: str) -> tuple[list[tuple[Path, float]], WordMaps]:
    """Return the images and the maps that `search` finds."""
    return search(trained, folder, text)[:2]


@no_grad()
def search(trained: TrainedModel, folder: str | Path, text: str) -> Found:
    """Return the image files of a folder with their cosines to a text, best first, and maps of the best image.

    The map of a word shows the patches that become less similar to the text when `<mask>` replaces the word. Files that
    are hidden or cannot be read are left out; a warning counts and names them. Raises DataError if none can be read.
    """
    require_kind(trained, "retrieve")
    model: Any = trained.model
    data = trained.data
    ids = _read_text(data, text, begin=START, end=END)
    paths, pixels, broken = _images_in(Path(folder), data)
    warn_of_unlike([(path, data.unlike(image)) for path, image in zip(paths, pixels, strict=True)])
    images = normalize(np.stack(pixels), data.mean, data.std)
    encode_images = served(model, "encode_images")
    rows = [encode_images(images[i : i + _BATCH]).numpy() for i in range(0, len(images), _BATCH)]
    cosines = np.concatenate(rows) @ model.encode_texts(ids).numpy()[0]
    order = np.argsort(-cosines, kind="stable")
    patches = model.image_proj(model.vision.features(images[order[:1]])).numpy()[0]
    masked = np.repeat(ids, ids.shape[1] - 2, axis=0)  # a row for each word between <start> and <end>
    np.fill_diagonal(masked[:, 1:], MASK)
    lost = (model.encode_texts(ids).numpy() - model.encode_texts(masked).numpy()) @ patches.T
    words = [data.words[i] for i in ids[0, 1:-1]]
    maps = WordMaps(pixels[order[0]], words, _on_grid(trained, np.maximum(lost, 0)))
    return Found([(paths[i], float(cosines[i])) for i in order], maps, broken)


# Inputs -------------------------------------------------------------------------------------------------------------


def _as_input(data: DataSpec, pixels: np.ndarray) -> np.ndarray:
    return normalize(pixels[None], data.mean, data.std)


def files_of(data: DataSpec, path: Path) -> list[Path]:
    """Return the files to read for a path: of a folder all images in it, or all sounds for a model of sounds.

    Files of other kinds, and pictures that this program drew, are passed over. Raises DataError if nothing is left.
    """
    if not path.is_dir():
        return [path]
    found, others = find_sounds(path) if data.sound else find_images(path)
    files = [file for file in found if data.sound or not is_drawn(file)]
    named = [entry for entry in others if entry.reason != NOT_AN_IMAGE]
    if not files:
        reasons = f": {listed_files(others)}" if others else ""
        what, suffixes = ("sounds", SOUND_SUFFIXES) if data.sound else ("images", IMAGE_SUFFIXES)
        raise DataError(f"{path} holds no {what} ({' '.join(suffixes)}) that can be read{reasons}")
    warn_of_left_out(path, named, len(files))
    return files


def warn_of_unlike(images: Sequence[tuple[str | Path, str]]) -> None:
    """Warn of those images, with their paths, of which `DataSpec.unlike` says how they are unlike the training images.

    What a model says about such an image may mean nothing: it has learnt from none that looks like it.
    """
    found = [(path, how) for path, how in images if how]
    if not found:
        return
    path, how = found[0]
    which = f"{path} is" if len(images) == 1 else f"{len(found)} of {len(images)} images are"
    example = how if len(images) == 1 else f"{path}: {how}"
    log.warning("%s unlike the training images, so the result may mean nothing (%s)", which, example)


def _images_in(folder: Path, data: DataSpec) -> tuple[list[Path], list[np.ndarray], list[LeftOut]]:
    """Return the image files in a folder and those below it, their pixels, and the files that cannot be read."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder" if folder.exists() else missing(folder, "folder"))
    paths, pixels, broken = read_files(files_of(data, folder), data.read_image)
    if not paths:
        raise DataError(f"{folder} holds no images that can be searched: {listed_files(broken)}")
    warn_of_left_out(folder, broken, len(paths))
    return paths, pixels, broken


def _read_text(data: DataSpec, text: str, begin: int | None = None, end: int | None = None) -> np.ndarray:
    """Return the token ids of a user's text, (1, N): between `begin` and `end`, or else after `<cls>`."""
    tokenizer, longest = data.tokenizer, data.lengths[0]
    ids = question_ids(tokenizer, [text])
    if begin is not None:
        ids = np.array([[begin, *ids[0, 1:], end]])
    special = 1 if end is None else 2
    if ids.shape[1] == special:
        raise DataError("the text is empty; give some words")
    if unknown := tokenizer.unknown(text):
        raise DataError(f"the text has words that this model does not know: {', '.join(dict.fromkeys(unknown))}")
    if ids.shape[1] > longest:
        raise DataError(
            f"the text has {ids.shape[1] - special} words and punctuation marks; "
            f"this model reads up to {longest - special}"
        )
    return ids


# Maps of words ------------------------------------------------------------------------------------------------------


def _attention_maps(trained: TrainedModel, weights: Mapping[str, np.ndarray], words: int) -> np.ndarray | None:
    """Return the attention from words to patches in the last layer that has it, as a mean over its heads.

    The maps have the shape (words, rows, columns); None if words attend to patches nowhere.
    """
    cross = [name for name in weights if name.endswith(".cross")]
    joint = [name for name in weights if name.startswith("fusion.encoder.")]
    if cross:
        return _on_grid(trained, weights[cross[-1]][0].mean(axis=0))
    if joint and trained.recipe.task.fusion == "joint":
        return _on_grid(trained, weights[joint[-1]][0].mean(axis=0)[:words, words:])
    return None


def _on_grid(trained: TrainedModel, weights: np.ndarray) -> np.ndarray:
    """Arrange weights (words, tokens of the image) as maps, without the tokens that precede the patches."""
    vision: Any = trained.model.vision  # type: ignore[attr-defined]
    return weights[:, vision.prefix :].reshape(len(weights), *vision.patch_embed.grid)


def is_drawn(path: Path) -> bool:
    """Return whether a file is a picture that this program drew."""
    try:
        with open_image(path) as image:
            return image.info.get("Software") == SOFTWARE
    except DataError:
        return False


def require_free(path: Path) -> None:
    """Raise DataError if a picture at `path` would replace any other file, such as a photo or a run's weights."""
    if path.exists() and not is_drawn(path):
        raise DataError(f"--out is {path}, a file that this program did not draw; name another")


@own_style()
def draw_word_maps(path: Path, maps: WordMaps, title: str) -> None:
    """Draw the image, and for each word the image lit by the word's map, as a PNG. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures = _pictures(maps)
    across = min(8, len(pictures))
    down = -(-len(pictures) // across)
    figure = Figure(figsize=(1.5 * across, 1.7 * down + 0.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, parse_math=False)
    for number, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
        axes.set_axis_off()
        if number < len(pictures):
            word, picture = pictures[number]
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(word, fontsize=9, parse_math=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": SOFTWARE})
    atomic_write(path, drawn.getvalue())


def _pictures(maps: WordMaps) -> list[tuple[str, np.ndarray]]:
    """Return the image (H, W, 3) without a word, then with each word the image lit by the word's map."""
    image = maps.pixels.transpose(1, 2, 0) / 255
    image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    pictures = [("", image)]
    if maps.maps is not None:
        rows, columns = (n // m for n, m in zip(image.shape[:2], maps.maps.shape[1:], strict=True))
        for word, weights in zip(maps.words, maps.maps, strict=True):
            light = np.kron(weights / (weights.max() or 1), np.ones((rows, columns)))[..., None]
            pictures.append((word, image * (0.2 + 0.8 * light)))
    return pictures
