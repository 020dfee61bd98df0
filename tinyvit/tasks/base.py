"""What tasks have in common: what a model needs to know of its data, and the four things a task says."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from ..data import Batch, Dataset, TextDataset, Tokenizer, load_texts
from ..data.texts import TEXT_DATASETS
from ..engine import Tensor
from ..errors import RecipeError
from ..models import ViT
from ..nn import Module, initialize_conv
from ..run.recipe import Model, Recipe, Train

AnyDataset = Dataset | TextDataset


def nothing() -> None:
    pass


@dataclass(frozen=True)
class DataSpec:
    """What a data set decides about a model, kept with the run so that predicting needs no data set.

    Attributes
    ----------
    classes : their names, in the order of the logits.
    shape : of an image, (C, H, W); (T, C, H, W) of a video, () without images.
    mean, std : of each channel, see `tinyvit.data.normalize`.
    words : the vocabulary, in the order of their numbers; none without texts.
    lengths : numbers of words that a text to read, and one to be written, have at most.
    """

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    words: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, dataset: AnyDataset) -> Self:
        spec = cls(dataset.classes, dataset.images.shape[1:], dataset.mean, dataset.std)
        if isinstance(dataset, Dataset):
            return spec
        lengths = tuple(table.shape[1] for table in (dataset.texts, dataset.labels) if table.ndim == 2)
        return dataclasses.replace(spec, words=dataset.tokenizer.words, lengths=lengths)

    @classmethod
    def from_state(cls, state: dict[str, list[Any]]) -> Self:
        return cls(**{name: tuple(values) for name, values in state.items()})

    def state_dict(self) -> dict[str, list[Any]]:
        return {name: list(values) for name, values in dataclasses.asdict(self).items()}

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.words)


class Found(NamedTuple):
    """What a model was found to do, besides its loss and accuracy."""

    shares: dict[str, float]  # accuracies from 0 to 1, by name
    names: tuple[str, ...] = ()  # of classes, or words
    confusion: np.ndarray | None = None  # (names, names): how many of each (rows) were taken for each (columns)

    def mistakes(self, most: int = 8) -> list[tuple[str, str, int]]:
        """The most frequent ones: what it was, what it was taken for, how often."""
        if self.confusion is None:
            return []
        wrong = self.confusion * ~np.eye(len(self.names), dtype=bool)
        places = np.argsort(-wrong, axis=None, kind="stable")[: min(most, np.count_nonzero(wrong))]
        rows, columns = np.unravel_index(places, wrong.shape)
        return [(self.names[i], self.names[j], int(wrong[i, j])) for i, j in zip(rows, columns, strict=True)]


class Task:
    """One kind of thing to learn; the recipe says how."""

    samples = "images"  # what the loader gives, in the plural
    datasets: tuple[str, ...] = tuple(TEXT_DATASETS)  # those with texts that can be learnt from

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def load(self, split: str) -> AnyDataset:
        """One split ("train", "test") of the data that the recipe names."""
        data = self.recipe.data
        if data.image_size:
            raise RecipeError(f"data.image_size is {data.image_size}; {data.name} has images of a size of their own")
        if data.name not in self.datasets:
            kind, known = self.recipe.task.kind, " or ".join(self.datasets)
            raise RecipeError(f"data.name is {data.name!r}; a run of the kind {kind!r} learns from {known}")
        return load_texts(data.name, split)

    def learn_from(self, train: AnyDataset) -> None:
        """Take what the loss needs of the train split as a whole: nothing, for most tasks."""

    def build(self, data: DataSpec) -> Module:
        """The model for such data, with new weights."""
        raise NotImplementedError

    def prepared(self, model: Module, batch: Batch) -> Batch:
        """A batch to train on with what the host draws for it at random, `Batch.drawn`: nothing, for most tasks."""
        return batch

    def loss(self, model: Module, batch: Batch) -> Tensor:
        """What is to be made small: the sum over the samples of a batch that is `prepared`.

        On a GPU it becomes part of a CUDA graph, where the batch lies on the device and nothing may wait for its
        values: what is random, or depends on the host, is in the batch.
        """
        raise NotImplementedError

    def evaluate(
        self, model: Module, dataset: Any, batch_size: int, after_batch: Callable[[], None] = nothing
    ) -> tuple[float, float, Found]:
        """Mean loss, accuracy from 0 to 1, and what else was found.

        `after_batch` is called after each batch, and may raise to break off.
        """
        raise NotImplementedError

    # What tasks with texts share

    def vision(self, data: DataSpec, depth: int | None = None) -> ViT:
        """The image encoder: the ViT of the recipe without a head.

        A convolutional stem begins with He's weights, so that what it sees is not small beside its biases.
        """
        vit = build_vit(self.recipe, data, 0, depth)
        if vit.patch_embed.stem is not None:
            initialize_conv(vit.patch_embed.stem)
        return vit

    def text_options(self) -> dict[str, Any]:
        """The arguments of text encoders and decoders that the recipe says."""
        model, task = self.recipe.model, self.recipe.task
        return {
            "dim": model.dim, "depth": task.text_depth, "heads": model.heads, "mlp_dim": model.mlp_dim or None,
            "norm": model.norm, "dropout": model.dropout,
        }  # fmt: skip


def build_vit(recipe: Recipe, data: DataSpec, num_classes: int, depth: int | None = None) -> ViT:
    """The ViT of a recipe for such images. Raises RecipeError if its keys do not fit."""
    arguments = dataclasses.asdict(recipe.model)
    for key in ("mlp_dim", "layer_scale"):
        arguments[key] = arguments[key] or None
    if depth is not None:
        arguments["depth"] = depth
    *frames, channels, height, width = data.shape
    try:
        return ViT((*frames, height, width), num_classes=num_classes, in_channels=channels, **arguments)
    except ValueError as error:
        raise mistake_in(recipe.model, error) from error


def mistake_in(section: Model | Train, error: ValueError) -> RecipeError:
    """What is wrong with a section of a recipe whose values `error` complains of, by the keys that it mentions."""
    keys = [key.name for key in dataclasses.fields(section) if re.search(rf"\b{key.name}\b", str(error))]
    name = type(section).__name__.lower()
    return RecipeError(f"{', '.join(f'{name}.{key}' for key in keys) or f'[{name}]'}: {error}")


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Within this block the model is in eval mode; then again in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def batches(dataset: AnyDataset, size: int) -> Iterator[tuple[slice, Batch]]:
    """The samples in order, in batches, and which they are."""
    for start in range(0, len(dataset), size):
        where = slice(start, min(start + size, len(dataset)))
        yield where, dataset.batch(np.arange(where.start, where.stop))


def by_kind(dataset: TextDataset, right: np.ndarray) -> tuple[float, dict[str, float]]:
    """The accuracy of what counts, and that of each kind of sample there is."""
    counts = ~np.isin(dataset.kind_of, [i for i, kind in enumerate(dataset.kinds) if kind in dataset.apart])
    kinds = {
        kind: float(right[dataset.kind_of == i].mean())
        for i, kind in enumerate(dataset.kinds)
        if (dataset.kind_of == i).any()
    }
    return float(right[counts].mean()), kinds
