"""Data sets with texts: questions about images, captions of images, texts with their translations."""

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from . import scenes
from .datasets import SPLITS, Batch, normalize
from .download import fetch
from .formats import damaged
from .images import read_image
from .sources import SOURCES, check_name, find
from .tokenizer import CLS, END, PAD, START, Tokenizer, padded

# Of the red, green and blue pixels of the train splits, which are bright for the most part. Around 0 a model sees the
# shapes, not the ground.
_EASY_STATISTICS = (0.9043, 0.9054, 0.8965), (0.1938, 0.1871, 0.2058)
_SCENE_STATISTICS = (0.8407, 0.8351, 0.8344), (0.1552, 0.1547, 0.1620)


@dataclass(frozen=True, eq=False)
class TextDataset:
    """One split of a data set with texts, in memory.

    Attributes
    ----------
    name, split : str
    tokenizer : Tokenizer
        Of the train split.
    texts : int64 (n, N)
        What is read: `<cls>` and the words of a question or of a source; `<start>`, words and `<end>` of a caption.
        Filled up with `<pad>`.
    labels : int64 (n,) or (n, M)
        Indices of answers into `classes`, or what is to be written: `<start>`, words and `<end>`, filled up.
    classes : tuple of str
        The answers; none where texts are written.
    images : uint8 (m, C, H, W), or (0,) without images
    image_of : int64 (n,)
        The image of each sample.
    kinds, kind_of : tuple of str, int64 (n,)
        Kinds of samples that are also measured apart.
    apart : tuple of str
        Kinds that do not count for the accuracy of the whole.
    mean, std : tuple of float
        Of each channel, for pixels in 0..1; empty without images.
    filled_to : int, optional
        Batches have all columns of their texts, and at least so many images; by default as few of both as can be.
    """

    name: str
    split: str
    tokenizer: Tokenizer
    texts: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    images: NDArray[np.uint8]
    image_of: NDArray[np.int64]
    kinds: tuple[str, ...]
    kind_of: NDArray[np.int64]
    apart: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    filled_to: int | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> "TextDataset":
        """The data set of its first `count` samples."""
        cut = {name: getattr(self, name)[:count] for name in ("texts", "labels", "image_of", "kind_of")}
        return replace(self, **cut)

    def in_one_shape(self, size: int) -> "TextDataset":
        """The data set with batches that all have one shape, as a CUDA graph needs: `size` samples in some `order`."""
        samples = np.bincount(self.image_of)
        whole = np.cumsum(np.sort(samples[samples > 0]))  # at least so many samples are about 1, 2, ... images
        # Of the first and of the last image there may be one sample, of all between there are all.
        most = min(size, len(whole), 2 + int(np.count_nonzero(whole <= size - 2)))
        return replace(self, filled_to=most if self.shares_images else 0)

    @property
    def shares_images(self) -> bool:
        """Whether there are several samples about an image."""
        return 0 < len(self.images) < len(self)

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """All samples in random order, but those about one image side by side, so that a model looks at it once."""
        order = rng.permutation(len(self))
        if not self.shares_images:
            return order
        place = rng.permutation(len(self.images))
        return order[np.argsort(place[self.image_of[order]], kind="stable")]

    def batch(
        self, chosen: NDArray[np.int64], index: int = 0, change: Callable[[NDArray], NDArray] | None = None
    ) -> Batch:
        """Batch number `index`, of the samples `chosen`, their images changed by `change`."""
        images = image_of = None
        if len(self.images):
            numbers = self.image_of[chosen]
            if self.shares_images:
                numbers, image_of = np.unique(numbers, return_inverse=True)
            pixels = self.images[numbers]
            pixels = pixels if change is None else change(pixels)
            images = normalize(_filled(pixels, self.filled_to or 0), self.mean, self.std)
        labels, texts = self.labels[chosen], self.texts[chosen]
        if self.filled_to is None:
            labels, texts = labels if labels.ndim == 1 else _trimmed(labels), _trimmed(texts)
        return Batch(images, labels, index, texts, image_of)


def _filled(pixels: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """`count` images, the last of them black ones that no sample is about."""
    missing = max(0, count - len(pixels))
    return np.pad(pixels, ((0, missing), *((0, 0),) * 3)) if missing else pixels


def _trimmed(texts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Without the columns that hold padding only."""
    return texts[:, : int((texts != PAD).sum(axis=1).max(initial=1))]


def load_texts(name: str, split: str) -> TextDataset:
    """Load one split ("train", "test") of a data set with texts: "easy-vqa", "scenes-questions", "scenes-captions",
    "reverse". Raises DataError."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; a data set has the splits 'train' and 'test'")
    if name not in TEXT_DATASETS:
        check_name(name)
        raise DataError(f"{name} has no texts; data sets that do are {', '.join(TEXT_DATASETS)}")
    return TEXT_DATASETS[name](split)


def question_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.int64]:
    """`<cls>` and the words of each text, filled up."""
    return padded([[CLS, *tokenizer.encode(text)] for text in texts])


def written_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.int64]:
    """`<start>`, the words and `<end>` of each text, filled up."""
    return padded([[START, *tokenizer.encode(text), END] for text in texts])


# easy-VQA -----------------------------------------------------------------------------------------------------------

EASY_KINDS = ("yes or no", "other answers")


def _easy_vqa(split: str) -> TextDataset:
    """Questions about one shape on a 64 x 64 image (Victor Zhou, 2019), in the published layout."""
    folder = find("easy-vqa") or fetch("easy-vqa")
    if not (folder / "answers.txt").is_file():
        _unpack(folder)
    tokenizer = Tokenizer.build(question for question, _, _ in _easy_questions(folder, "train"))
    questions = _easy_questions(folder, split)
    classes = tuple(sorted((folder / "answers.txt").read_text("utf-8").split()))
    numbers = sorted({image for _, _, image in questions})
    images = np.stack([read_image(folder / split / "images" / f"{n}.png", 3) for n in numbers])
    place, answer = ({value: i for i, value in enumerate(values)} for values in (numbers, classes))
    unknown = {a for _, a, _ in questions} - set(classes)
    if unknown:
        raise damaged(folder / split / "questions.json", "easy-vqa", f"holds answers that are none: {sorted(unknown)}")
    return TextDataset(
        "easy-vqa",
        split,
        tokenizer,
        question_ids(tokenizer, [question for question, _, _ in questions]),
        np.array([answer[a] for _, a, _ in questions]),
        classes,
        images,
        np.array([place[image] for _, _, image in questions]),
        EASY_KINDS,
        np.array([int(a not in ("yes", "no")) for _, a, _ in questions]),
        (),
        *_EASY_STATISTICS,
    )


def _unpack(folder: Path) -> None:
    """Take the data out of the wheel that was downloaded into `folder`; its checksum is verified already."""
    (wheel,) = SOURCES["easy-vqa"].files
    inside = "easy_vqa/data/"
    with zipfile.ZipFile(folder / wheel.name) as archive:
        names = [
            name for name in archive.namelist() if name.startswith(inside) and name.endswith((".txt", ".json", ".png"))
        ]
        for name in sorted(names, key=lambda name: name.endswith("answers.txt")):  # last, so that it says all are there
            target = folder / name.removeprefix(inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))


def _easy_questions(folder: Path, split: str) -> list[tuple[str, str, int]]:
    """(question, answer, number of the image)."""
    path = folder / split / "questions.json"
    try:
        return [(str(q), str(a), int(image)) for q, a, image in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise damaged(path, "easy-vqa", f"is no list of [question, answer, image]: {error}") from error


# Scenes -------------------------------------------------------------------------------------------------------------

PAIR_KINDS = ("seen pairs", "held-out pairs")


def _scene_questions(split: str) -> TextDataset:
    """Questions about generated scenes; those with held-out pairs of colour and shape are counted apart."""
    tokenizer = Tokenizer.build(scenes.VOCABULARY)
    parts = scenes.of_split(split)
    samples = [(q, i) for i, scene in enumerate(parts.all) for q in scenes.questions(scene, parts.seed, i)]
    kinds = ("non-relational", "relational", PAIR_KINDS[1])
    kind = [2 if image >= len(parts.seen) else int(q.relational) for q, image in samples]
    return TextDataset(
        "scenes-questions",
        split,
        tokenizer,
        question_ids(tokenizer, [q.text for q, _ in samples]),
        np.array([scenes.ANSWERS.index(q.answer) for q, _ in samples]),
        scenes.ANSWERS,
        scenes.render(parts.all),
        np.array([image for _, image in samples]),
        kinds,
        np.array(kind),
        kinds[2:],
        *_SCENE_STATISTICS,
    )


def _scene_captions(split: str) -> TextDataset:
    """Generated scenes with their captions; those with held-out pairs of colour and shape are counted apart."""
    tokenizer = Tokenizer.build(scenes.VOCABULARY)
    parts = scenes.of_split(split)
    texts = written_ids(tokenizer, [scenes.caption(scene) for scene in parts.all])
    count = len(parts.all)
    return TextDataset(
        "scenes-captions",
        split,
        tokenizer,
        texts,
        texts,
        (),
        scenes.render(parts.all),
        np.arange(count),
        PAIR_KINDS,
        (np.arange(count) >= len(parts.seen)).astype(np.int64),
        PAIR_KINDS[1:],
        *_SCENE_STATISTICS,
    )


# Sequences ----------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghij"
LONGEST = 10


def _reverse(split: str) -> TextDataset:
    """Rows of 3 to 10 letters, some of them repeated, and the same rows from the end; no row is in both splits."""
    rng = np.random.default_rng(20)
    rows = dict.fromkeys(" ".join(LETTERS[i] for i in rng.integers(0, 10, rng.integers(3, 11))) for _ in range(24_000))
    chosen = list(rows)[:1000] if split == "test" else list(rows)[1000:]
    tokenizer = Tokenizer.build([" ".join(LETTERS)])
    return TextDataset(
        "reverse",
        split,
        tokenizer,
        question_ids(tokenizer, chosen),
        written_ids(tokenizer, [row[::-1] for row in chosen]),
        (),
        np.zeros(0, np.uint8),
        np.zeros(len(chosen), np.int64),
        (),
        np.zeros(len(chosen), np.int64),
    )


TEXT_DATASETS: dict[str, Callable[[str], TextDataset]] = {
    "easy-vqa": _easy_vqa,
    "scenes-questions": _scene_questions,
    "scenes-captions": _scene_captions,
    "reverse": _reverse,
}
