"""Data sets with texts: questions about images, captions of images, and texts with their translations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.files import parse_json, read_text
from ..errors import DataError
from . import scenes
from .archives import unpack
from .datasets import SPLITS, Batch, checksum, normalize, sample_indices
from .disk import DiskImages
from .download import fetch
from .formats import damaged
from .images import read_image
from .sources import SOURCES, check_name, find
from .tokenizer import CLS, END, PAD, START, Tokenizer, padded

# Per-channel mean and standard deviation of the train splits. Normalizing puts the bright background near zero.
_EASY_STATISTICS = (0.9043, 0.9054, 0.8965), (0.1938, 0.1871, 0.2058)
SCENE_STATISTICS = (0.8407, 0.8351, 0.8344), (0.1552, 0.1547, 0.1620)


@dataclass(frozen=True, eq=False)
class TextDataset:
    """One split of a data set with texts, in memory.

    Attributes
    ----------
    name, split : str
    tokenizer : Tokenizer
        Built from the train split.
    texts : int64 (n, N)
        Token ids of the input: `<cls>` and the words of a question or a source; `<start>`, words and `<end>` of a
        caption. Padded with `<pad>`.
    labels : int64 (n,) or (n, M)
        Indices of answers into `classes`, or token ids of the text to write: `<start>`, words and `<end>`, padded.
    classes : tuple of str
        The answers; empty if texts are written.
    images : uint8 (m, C, H, W), or (0,) without images
        An array, or `DiskImages`, which are read as they are needed.
    image_of : int64 (n,)
        The index of each sample's image.
    kinds, kind_of : tuple of str, int64 (n,)
        Kinds of samples, each of which is also measured on its own, and the kind of each sample.
    apart : tuple of str
        Kinds that do not count towards the accuracy of all samples.
    mean, std : tuple of float
        Of each channel, for pixels in 0..1; empty without images.
    files : tuple of str
        The file of each image, if each has its own; else empty.
    filled_to : int, optional
        The number of images to which batches are filled up; their texts then keep all columns. By default, batches have
        only the images and columns that they need.
    """

    name: str
    split: str
    tokenizer: Tokenizer
    texts: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    images: Any
    image_of: NDArray[np.int64]
    kinds: tuple[str, ...]
    kind_of: NDArray[np.int64]
    apart: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    files: tuple[str, ...] = ()
    filled_to: int | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> "TextDataset":
        """Return the data set reduced to its first `count` samples."""
        return self.chosen(np.arange(min(count, len(self))))

    def chosen(self, indices: NDArray[np.int64]) -> "TextDataset":
        """Return the data set reduced to the samples with these indices; it keeps all images."""
        cut = {name: getattr(self, name)[indices] for name in ("texts", "labels", "image_of", "kind_of")}
        return replace(self, **cut)

    def sample(self, count: int, seed: int = 0) -> "TextDataset":
        """Return a random sample of `count` samples, in the order of the data set.

        It has some of every answer, or of every kind of sample where texts are written, if `count` allows.
        """
        groups = self.labels if self.labels.ndim == 1 else self.kind_of
        return self.chosen(sample_indices(groups, count, seed))

    def fingerprint(self) -> str:
        """Return a checksum of all texts, labels and images."""
        pixels = self.images.digests if isinstance(self.images, DiskImages) else self.images
        return checksum(self.texts, self.labels, pixels, self.image_of)

    def with_equal_batches(self, size: int) -> "TextDataset":
        """Return the data set with batches of `size` samples that all have the same shape, as a CUDA graph needs.

        The batches must take consecutive samples of an `order`.
        """
        samples = np.bincount(self.image_of)
        fewest = np.cumsum(np.sort(samples[samples > 0]))  # the fewest samples that 1, 2, ... images can have
        # A batch may hold one sample of its first image and one of its last, but has all samples of those in between.
        most = min(size, len(fewest), 2 + int(np.count_nonzero(fewest <= size - 2)))
        return replace(self, filled_to=most if self.shares_images else 0)

    @property
    def shares_images(self) -> bool:
        """Whether several samples are about the same image."""
        return 0 < len(self.images) < len(self)

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return all samples in random order, but keep those about one image together, so that it is encoded once."""
        order = rng.permutation(len(self))
        if not self.shares_images:
            return order
        place = rng.permutation(len(self.images))
        return order[np.argsort(place[self.image_of[order]], kind="stable")]

    def batch(
        self, chosen: NDArray[np.int64], index: int = 0, augment: Callable[[NDArray], NDArray] | None = None
    ) -> Batch:
        """Return batch number `index`, of the samples with the indices `chosen`, their images changed by `augment`."""
        images = image_of = None
        if len(self.images):
            numbers = self.image_of[chosen]
            if self.shares_images:
                numbers, image_of = np.unique(numbers, return_inverse=True)
            pixels = self.images[numbers]
            pixels = pixels if augment is None else augment(pixels)
            images = normalize(_filled(pixels, self.filled_to or 0), self.mean, self.std)
        labels, texts = self.labels[chosen], self.texts[chosen]
        if self.filled_to is None:
            labels, texts = labels if labels.ndim == 1 else _trimmed(labels), _trimmed(texts)
        return Batch(images, labels, index, texts, image_of)


def _filled(pixels: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Append black images, which no sample is about, until there are `count`."""
    missing = max(0, count - len(pixels))
    return np.pad(pixels, ((0, missing), *((0, 0),) * 3)) if missing else pixels


def _trimmed(texts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Remove the columns that hold only padding."""
    return texts[:, : int((texts != PAD).sum(axis=1).max(initial=1))]


def load_texts(name: str, split: str) -> TextDataset:
    """Load one split ("train", "test") of one of the data sets in `TEXT_DATASETS`. Raises DataError."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; a data set has the splits 'train' and 'test'")
    if name not in TEXT_DATASETS:
        check_name(name)
        raise DataError(f"{name} has no texts; data sets with texts: {', '.join(TEXT_DATASETS)}")
    return TEXT_DATASETS[name](split)


def question_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the token ids of each text after `<cls>`, padded."""
    return padded([[CLS, *tokenizer.encode(text)] for text in texts])


def written_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the token ids of each text between `<start>` and `<end>`, padded."""
    return padded([[START, *tokenizer.encode(text), END] for text in texts])


# easy-VQA -----------------------------------------------------------------------------------------------------------

EASY_KINDS = ("yes or no", "other answers")
_INSIDE = "easy_vqa/data/"  # the folder of the data in the wheel


def _easy_vqa(split: str) -> TextDataset:
    """Load easy-VQA, questions about one shape on a 64 x 64 image (Victor Zhou, 2019), in its published layout."""
    folder = find("easy-vqa") or fetch("easy-vqa")
    (wheel,) = SOURCES["easy-vqa"].files
    if not all((folder / part).is_file() for part in wheel.parts):
        unpack(folder / wheel.name, "easy-vqa", wheel.sha256, _INSIDE, (".txt", ".json", ".png"), wheel.parts)
    tokenizer = Tokenizer.build(question for question, _, _ in _easy_questions(folder, "train"))
    questions = _easy_questions(folder, split)
    classes = _easy_answers(folder / "answers.txt")
    numbers = sorted({image for _, _, image in questions})
    files = [folder / split / "images" / f"{n}.png" for n in numbers]
    pixels = [read_image(file, 3) for file in files]
    for file, image in zip(files, pixels, strict=True):
        if image.shape != pixels[0].shape:
            raise damaged(file, "easy-vqa", f"has the shape {image.shape} (C, H, W), not {pixels[0].shape}")
    images = np.stack(pixels)
    place, answer = ({value: i for i, value in enumerate(values)} for values in (numbers, classes))
    if unknown := sorted({a for _, a, _ in questions} - set(classes)):
        raise damaged(folder / split / "questions.json", "easy-vqa", f"holds answers that answers.txt lacks: {unknown}")
    return TextDataset(
        name="easy-vqa",
        split=split,
        tokenizer=tokenizer,
        texts=question_ids(tokenizer, [question for question, _, _ in questions]),
        labels=np.array([answer[a] for _, a, _ in questions]),
        classes=classes,
        images=images,
        image_of=np.array([place[image] for _, _, image in questions]),
        kinds=EASY_KINDS,
        kind_of=np.array([int(a not in ("yes", "no")) for _, a, _ in questions]),
        mean=_EASY_STATISTICS[0],
        std=_EASY_STATISTICS[1],
    )


def _easy_answers(path: Path) -> tuple[str, ...]:
    """Return the answers in alphabetical order."""
    try:
        answers = tuple(sorted(set(read_text(path).split())))
        if not answers:
            raise ValueError("it is empty")
    except (OSError, ValueError) as error:
        raise damaged(path, "easy-vqa", f"is not a list of answers: {error}") from error
    return answers


def _easy_questions(folder: Path, split: str) -> list[tuple[str, str, int]]:
    """Return (question, answer, number of the image) of each question."""
    path = folder / split / "questions.json"
    try:
        found = [(q, a, image) for q, a, image in parse_json(read_text(path))]
        if wrong := [entry for entry in found if tuple(map(type, entry)) != (str, str, int) or entry[2] < 0]:
            raise ValueError(f"it holds {wrong[0]!r:.200}")
        if not found:
            raise ValueError("it is empty")
    except (OSError, ValueError, TypeError) as error:
        raise damaged(path, "easy-vqa", f"is not a list of [question, answer, image]: {error}") from error
    return found


# Scenes -------------------------------------------------------------------------------------------------------------

PAIR_KINDS = ("seen pairs", "held-out pairs")


def _scene_questions(split: str) -> TextDataset:
    """Generate questions about scenes; those about scenes with held-out pairs are measured apart."""
    tokenizer = Tokenizer.build(scenes.VOCABULARY)
    parts = scenes.of_split(split)
    samples = [(q, i) for i, scene in enumerate(parts.all) for q in scenes.questions(scene, parts.seed, i)]
    kinds = ("non-relational", "relational", PAIR_KINDS[1])
    kind = [2 if image >= len(parts.seen) else int(q.relational) for q, image in samples]
    return TextDataset(
        name="scenes-questions",
        split=split,
        tokenizer=tokenizer,
        texts=question_ids(tokenizer, [q.text for q, _ in samples]),
        labels=np.array([scenes.ANSWERS.index(q.answer) for q, _ in samples]),
        classes=scenes.ANSWERS,
        images=scenes.render(parts.all),
        image_of=np.array([image for _, image in samples]),
        kinds=kinds,
        kind_of=np.array(kind),
        apart=kinds[2:],
        mean=SCENE_STATISTICS[0],
        std=SCENE_STATISTICS[1],
    )


def _scene_captions(split: str) -> TextDataset:
    """Generate scenes with captions; those with held-out pairs are measured apart."""
    tokenizer = Tokenizer.build(scenes.VOCABULARY)
    parts = scenes.of_split(split)
    texts = written_ids(tokenizer, [scenes.caption(scene) for scene in parts.all])
    count = len(parts.all)
    return TextDataset(
        name="scenes-captions",
        split=split,
        tokenizer=tokenizer,
        texts=texts,
        labels=texts,
        classes=(),
        images=scenes.render(parts.all),
        image_of=np.arange(count),
        kinds=PAIR_KINDS,
        kind_of=(np.arange(count) >= len(parts.seen)).astype(np.int64),
        apart=PAIR_KINDS[1:],
        mean=SCENE_STATISTICS[0],
        std=SCENE_STATISTICS[1],
    )


# Sequences ----------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghij"
LONGEST = 10


@cache
def _rows_of_letters() -> tuple[str, ...]:
    """Generate different rows of 3 to 10 letters, with repetitions."""
    rng = np.random.default_rng(20)
    drawn = (rng.integers(0, len(LETTERS), rng.integers(3, LONGEST + 1)) for _ in range(24_000))
    return tuple(dict.fromkeys(" ".join(LETTERS[i] for i in row) for row in drawn))


def _reverse(split: str) -> TextDataset:
    """Take rows of letters, and the same rows reversed; no row is in both splits."""
    rows = _rows_of_letters()
    chosen = rows[:1000] if split == "test" else rows[1000:]
    tokenizer = Tokenizer.build([" ".join(LETTERS)])
    return TextDataset(
        name="reverse",
        split=split,
        tokenizer=tokenizer,
        texts=question_ids(tokenizer, chosen),
        labels=written_ids(tokenizer, [row[::-1] for row in chosen]),
        classes=(),
        images=np.zeros(0, np.uint8),
        image_of=np.zeros(len(chosen), np.int64),
        kinds=(),
        kind_of=np.zeros(len(chosen), np.int64),
    )


TEXT_DATASETS: dict[str, Callable[[str], TextDataset]] = {
    "easy-vqa": _easy_vqa,
    "scenes-questions": _scene_questions,
    "scenes-captions": _scene_captions,
    "reverse": _reverse,
}
