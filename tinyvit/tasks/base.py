"""What all tasks share: the facts about the data that a model needs, the report of an evaluation, and its one loop."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..context import no_grad
from ..data import Augment, Batch, Dataset, TextDataset, Tokenizer, load_texts
from ..data.datasets import HANDED
from ..data.image_files import listed, same_form
from ..data.texts import TEXT_DATASETS
from ..engine import Tensor
from ..errors import RecipeError
from ..models import ViT
from ..nn import Module, initialize_conv
from ..recipe import Model, Recipe, Train

AnyDataset = Dataset | TextDataset
DEFAULTS = {  # of the keys of recipes that have one
    f"{section.name}.{key.name}": key.default
    for section in dataclasses.fields(Recipe)
    for key in dataclasses.fields(section.type)  # type: ignore[arg-type]
}
HIDING = ("task.hide", "task.hide_patches", "task.hide_words")
OF_IMAGES = tuple(f"model.{key}" for key in (  # keys of the ViT that no model of texts has
    "pool", "pos_embed", "qkv_bias", "emb_dropout", "drop_path", "layer_scale", "register_tokens", "stem"
))  # fmt: skip
_LARGEST = 2**20  # side of an image, or length of a text, that a checkpoint may state


@dataclass(frozen=True)
class DataSpec:
    """The facts about a data set that decide the form of a model. A run keeps them, so predicting needs no data set.

    Attributes
    ----------
    classes : names of the classes, in the order of the logits.
    shape : of an image, (C, H, W); (T, C, H, W) of a video; () without images.
    mean, std : of each channel, see `tinyvit.data.normalize`.
    words : the vocabulary, in the order of the token ids; empty without texts.
    lengths : the largest number of tokens of a text that is read, and of one that is written.
    """

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    words: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, dataset: AnyDataset) -> Self:
        """Collect the facts from a data set."""
        spec = cls(dataset.classes, dataset.images.shape[1:], dataset.mean, dataset.std)
        if isinstance(dataset, Dataset):
            return spec
        lengths = tuple(table.shape[1] for table in (dataset.texts, dataset.labels) if table.ndim == 2)
        return dataclasses.replace(spec, words=dataset.tokenizer.words, lengths=lengths)

    @classmethod
    def from_state(cls, state: dict[str, list[Any]]) -> Self:
        """Restore what `state_dict` returned. Raises TypeError or ValueError if it is not the state of such facts."""
        spec = cls(**{name: tuple(values) for name, values in state.items()})
        for names in (spec.classes, spec.words):
            if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
                raise ValueError(f"classes and words must be different texts, not {names!r:.100}")
        for counts in (spec.shape, spec.lengths):
            if not all(type(count) is int and 0 < count <= _LARGEST for count in counts):
                raise ValueError(f"shape and lengths must be integers from 1 to {_LARGEST}, not {counts!r:.100}")
        numbers = [float(number) for number in (*spec.mean, *spec.std)]
        if not all(map(math.isfinite, numbers)) or min(spec.std, default=1) <= 0:
            raise ValueError(f"mean and std are {spec.mean!r:.100} and {spec.std!r:.100}")
        channels = spec.shape[-3:-2]
        if len(spec.shape) not in (0, 3, 4) or {len(spec.mean), len(spec.std)} != {sum(channels)}:
            raise ValueError(f"shape is {spec.shape}, with {len(spec.mean)} means and {len(spec.std)} deviations")
        if spec.words:
            Tokenizer(spec.words)
        return spec

    def state_dict(self) -> dict[str, list[Any]]:
        """Return the facts in the form that a checkpoint stores."""
        return {name: list(values) for name, values in dataclasses.asdict(self).items()}

    def differences(self, found: Self) -> list[str]:
        """Return in words how the facts in `found` about other data differ from these; an empty list if they agree.

        Longer texts differ; shorter ones do not. The normalization is not compared.
        """
        told = [
            _names_that_differ("classes", tuple(map(same_form, self.classes)), tuple(map(same_form, found.classes))),
            _names_that_differ("words", self.words, found.words),
        ]
        if self.shape != found.shape:
            told.append(f"the images were {_size_of(self.shape)} and are now {_size_of(found.shape)}")
        for kind, length, now in zip(("read", "written"), self.lengths, found.lengths, strict=False):
            if now > length:
                told.append(f"the longest text that is {kind} had {length} tokens and has now {now}")
        return [line for line in told if line]

    @property
    def tokenizer(self) -> Tokenizer:
        """A tokenizer of the vocabulary."""
        return Tokenizer(self.words)


def _names_that_differ(what: str, before: tuple[str, ...], now: tuple[str, ...]) -> str:
    """Return in words how the names in `now` differ from those in `before`; empty if they do not."""
    missing, new = [n for n in before if n not in now], [n for n in now if n not in before]
    if before == now:
        return ""
    changes = [f"{listed(names)} {verb}" for names, verb in ((missing, "is gone"), (new, "is new")) if names]
    how = ", ".join(changes) or "in another order"
    return f"the {what} were {listed(before, 10)} and are now {listed(now, 10)} ({how})"


def _size_of(shape: tuple[int, ...]) -> str:
    """Return the shape of an image in words."""
    if not shape:
        return "absent"
    *frames, channels, height, width = shape
    size = f"{width} x {height} pixels with {channels} channel{'s' * (channels > 1)}"
    return f"{frames[0]} frames of {size}" if frames else size


@dataclass(frozen=True)
class Report:
    """The result of an evaluation.

    Attributes
    ----------
    loss : mean over the samples, without label smoothing.
    accuracy : from 0 to 1.
    shares : further accuracies from 0 to 1, by name.
    names : names of the classes, or the vocabulary, that `confusion` counts.
    confusion : int64 (len(names), len(names)), how often each name (row) was taken for each (column), or None.
    """

    loss: float
    accuracy: float
    shares: dict[str, float]
    names: tuple[str, ...] = ()
    confusion: np.ndarray | None = None

    def mistakes(self, most: int = 8) -> list[tuple[str, str, int]]:
        """Return the most frequent mistakes: the right name, the name it was taken for, how often."""
        if self.confusion is None:
            return []
        wrong = self.confusion * ~np.eye(len(self.names), dtype=bool)
        places = np.argsort(-wrong, axis=None, kind="stable")[: min(most, np.count_nonzero(wrong))]
        rows, columns = np.unravel_index(places, wrong.shape)
        return [(self.names[i], self.names[j], int(wrong[i, j])) for i, j in zip(rows, columns, strict=True)]


class Task:
    """One kind of thing to learn; the recipe holds its settings.

    Attributes
    ----------
    samples : the name of what a batch consists of, in the plural.
    unused : keys of recipes that this kind of task does not use; a recipe may not set them.
    datasets : names of the data sets with texts that this task can learn from.
    """

    samples = "images"
    unused: tuple[str, ...] = ()
    datasets: tuple[str, ...] = tuple(TEXT_DATASETS)

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def load(self, split: str) -> AnyDataset:
        """Load one split ("train", "test") of the data that the recipe names."""
        data = self.recipe.data
        if data.image_size:
            raise RecipeError(f"data.image_size is {data.image_size}; the images of {data.name} have a fixed size")
        if data.name not in self.datasets:
            kind, known = self.recipe.task.kind, " or ".join(self.datasets)
            raise RecipeError(f"data.name is {data.name!r}; a {kind!r} run learns from {known}")
        return load_texts(data.name, split)

    def check(self, data: DataSpec) -> None:
        """Raise RecipeError if the recipe asks for something that this task cannot do or does not use on such data."""
        kind, name = self.recipe.task.kind, self.recipe.data.name
        for key in self.unused:
            section, _, field = key.partition(".")
            value, default = getattr(getattr(self.recipe, section), field), DEFAULTS[key]
            if value != default:
                raise RecipeError(f"{key} is {value!r}, which a {kind!r} run does not use; leave it at {default!r}")
        augment = augmentation_of(self.recipe)
        for key in augment.used():
            if not self.sees_images or not data.shape:
                raise RecipeError(f"data.{key} is {getattr(augment, key)}, but a {kind!r} run on {name} has no images")
        if augment.flip and name in HANDED:
            raise RecipeError(
                f"data.flip is True, but the labels of {name} tell left from right: leave images as they are"
            )
        for key in ("shift", "cutout"):
            if (value := getattr(augment, key)) and value >= min(data.shape[-2:]):
                side = " x ".join(map(str, data.shape[:-3:-1]))
                raise RecipeError(f"data.{key} is {value}; it must be less than the side of the images, {side} pixels")

    @property
    def sees_images(self) -> bool:
        """Whether the model has images as input, if the data has any."""
        return True

    def prepare(self, train: AnyDataset) -> None:
        """Compute statistics of the train split that the loss needs; most tasks need none."""

    def build(self, data: DataSpec) -> Module:
        """Return a model for such data, with new weights."""
        raise NotImplementedError

    def with_draws(self, model: Module, batch: Batch) -> Batch:
        """Return `batch` with the random numbers that its loss needs, `Batch.drawn`; most tasks need none."""
        return batch

    def loss(self, model: Module, batch: Batch) -> Tensor:
        """Return the loss to minimize, summed over the samples of a batch from `with_draws`.

        On a GPU the loss becomes part of a CUDA graph: the batch lies on the device and nothing may wait for its
        values. Whatever is random, or depends on the host, is therefore in the batch.
        """
        raise NotImplementedError

    # Evaluation

    def evaluate(
        self, model: Module, dataset: Any, batch_size: int, after_batch: Callable[[], object] = lambda: None
    ) -> Report:
        """Measure `model` on all samples of `dataset`, in order and in eval mode.

        `after_batch` is called after each batch, and may raise an exception to stop.
        """
        loss = 0.0
        measured: list[Any] = []
        with no_grad(), eval_mode(model):
            for start in range(0, len(dataset), batch_size):
                batch = dataset.batch(np.arange(start, min(start + batch_size, len(dataset))))
                batch_loss, found = self.measure(model, batch, start)
                loss += batch_loss
                measured.append(found)
                after_batch()
        return self.report(dataset, loss / len(dataset), measured)

    def measure(self, model: Any, batch: Batch, start: int) -> tuple[float, Any]:
        """Return the loss of a batch, summed over its samples, and what `report` needs to know about the batch.

        The batch begins with sample number `start` of the data set.
        """
        raise NotImplementedError

    def report(self, dataset: Any, loss: float, measured: Sequence[Any]) -> Report:
        """Return the report on a data set from its mean loss and what `measure` found in each batch."""
        raise NotImplementedError

    def describe(self, report: Report, count: int) -> str:
        """Return a report on `count` samples as text."""
        lines = self.summary(report, count)
        lines += [f"  {name}: {100 * share:.2f} %" for name, share in report.shares.items()]
        if mistakes := report.mistakes():
            texts = [f"{name!r} taken for {other!r} {times} times" for name, other, times in mistakes]
            lines += ["", "most frequent mistakes: " + ", ".join(texts)]
        return "\n".join(lines)

    def summary(self, report: Report, count: int) -> list[str]:
        """Return the first lines of a described report: accuracy and loss."""
        return [f"accuracy {100 * report.accuracy:.2f} % ({count:,} {self.samples}), loss {report.loss:.4f}"]

    # Parts of models that tasks with texts share

    def vision(self, data: DataSpec, depth: int | None = None) -> ViT:
        """Return an image encoder: the ViT of the recipe without a head.

        A convolutional stem begins with He's weights, so that its outputs are not small beside its biases.
        """
        vit = build_vit(self.recipe, data, 0, depth)
        if vit.patch_embed.stem is not None:
            initialize_conv(vit.patch_embed.stem)
        return vit

    def text_options(self) -> dict[str, Any]:
        """Return the arguments of text encoders and decoders that the recipe decides."""
        model = self.recipe.model
        return {
            "dim": model.dim,
            "depth": self.recipe.task.text_depth,
            "heads": model.heads,
            "mlp_dim": model.mlp_dim or None,
            "norm": model.norm,
            "dropout": model.dropout,
        }


def build_vit(recipe: Recipe, data: DataSpec, num_classes: int, depth: int | None = None) -> ViT:
    """Return the ViT of a recipe for such images. Raises RecipeError if its keys do not fit."""
    arguments = dataclasses.asdict(recipe.model)
    for key in ("mlp_dim", "layer_scale"):
        arguments[key] = arguments[key] or None
    if depth is not None:
        arguments["depth"] = depth
    *frames, channels, height, width = data.shape
    try:
        return ViT((*frames, height, width), num_classes=num_classes, in_channels=channels, **arguments)
    except ValueError as error:
        raise recipe_error(recipe.model, error) from error


def recipe_error(section: Model | Train, error: ValueError) -> RecipeError:
    """Turn a complaint about the values of a section into a RecipeError that names the keys it mentions."""
    keys = [key.name for key in dataclasses.fields(section) if re.search(rf"\b{key.name}\b", str(error))]
    name = type(section).__name__.lower()
    return RecipeError(f"{', '.join(f'{name}.{key}' for key in keys) or f'[{name}]'}: {error}")


def augmentation_of(recipe: Recipe) -> Augment:
    """Return the changes of training images that a recipe asks for."""
    return Augment(**{key.name: getattr(recipe.data, key.name) for key in dataclasses.fields(Augment)})


@contextmanager
def eval_mode(model: Module) -> Iterator[None]:
    """Put the model into eval mode within this block, then back into the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def count_confusions(actual: np.ndarray, taken: np.ndarray, names: int) -> np.ndarray:
    """Count how often each of `names` classes (row) was taken for each (column), int64 (names, names)."""
    counts = np.zeros((names, names), np.int64)
    np.add.at(counts, (actual, taken), 1)
    return counts


def accuracy_by_kind(dataset: TextDataset, right: np.ndarray) -> tuple[float, dict[str, float]]:
    """Return the accuracy over the kinds of samples that count, and the accuracy of each kind; right (n,) bool."""
    counts = ~np.isin(dataset.kind_of, [i for i, kind in enumerate(dataset.kinds) if kind in dataset.apart])
    kinds = {
        kind: float(right[dataset.kind_of == i].mean())
        for i, kind in enumerate(dataset.kinds)
        if (dataset.kind_of == i).any()
    }
    return float(right[counts].mean()), kinds
