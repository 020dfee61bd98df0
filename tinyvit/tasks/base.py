"""What all tasks share: what a recipe may ask for, and the one loop of evaluation."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import numpy as np

from ..backend import Group
from ..backend.words import counted
from ..context import no_grad
from ..data import Augment, Batch, TextDataset, load_texts
from ..data.augment import NOT_WITH_TARGETS
from ..data.datasets import HANDED
from ..data.texts import TEXT_DATASETS
from ..engine import Tensor
from ..errors import RecipeError
from ..models import ViT
from ..nn import Module, initialize_conv
from ..recipe import Model, Recipe, Train
from .options import DEFAULTS, OF_FOLDERS, OF_SOUNDS, OWN, OWN_IMAGES, TABLE, augmentation_of, load_table
from .report import Report
from .spec import AnyDataset, DataSpec

HIDING = ("task.hide", "task.hide_patches", "task.hide_words")
FIXED = tuple(f"data.{key}" for key in NOT_WITH_TARGETS)  # changes of images that masks and boxes cannot follow
# How images are read; those with masks or boxes are read in one way only.
READING = tuple(f"data.{key}" for key in ("normalize", "resize", *OF_FOLDERS))
DENSE = ("task.mask_head", "task.dice", "task.queries")  # of segmentation and detection
OF_IMAGES = tuple(f"model.{key}" for key in (  # keys of the ViT that no model of texts has
    "pool", "pos_embed", "qkv_bias", "emb_dropout", "drop_path", "layer_scale", "register_tokens", "stem",
    "class_token", "distilled", "no_embed_class", "last_norm", "pre_norm", "qk_norm", "proj_bias", "act", "eps",
    "head_dropout", "norm_layer", "mlp_layer", "lsa", "rope",
))  # fmt: skip
OF_TEACHERS = ("task.distill", "task.distill_temperature", "task.distill_weight")
OF_CLASSIFIERS = ("task.lora_rank", "task.lora_targets", "model.head_dropout", "task.teacher", *OF_TEACHERS)


class Task:
    """One kind of thing to learn; the recipe holds its settings.

    Attributes
    ----------
    samples : the name of what a batch consists of, in the plural.
    score : what the number measures that reports and metrics call accuracy.
    unused : keys of recipes that this kind of task does not use; a recipe may not set them.
    datasets : names of the data sets with texts that this task can learn from.
    columns : what a table of texts of the user's own must have for this task, see `tinyvit.data.own_texts`.
    compares : whether the loss compares the samples of a batch with each other: then it is `compare(*embed(...))`, so
        that the features of a batch can be computed in parts.
    """

    samples = "images"
    score = "accuracy"
    unused: tuple[str, ...] = ()
    datasets: tuple[str, ...] = tuple(TEXT_DATASETS)
    columns: tuple[str, ...] = ()
    compares = False

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def load(self, split: str, like: Any = None) -> AnyDataset | None:
        """Load a split of the data that the recipe names: "train", "test" or "validation".

        The result is None if the data has no validation split of its own: it is then cut from the train split.

        Images of a folder get the form and the statistics of the training images `like`, a data set or a `DataSpec`.
        """
        data = self.recipe.data
        if data.name.startswith(TABLE):
            return load_table(self.recipe, self.columns, split, like, self.compares)
        if split == "validation":
            return None
        if data.image_size:
            raise RecipeError(f"data.image_size is {data.image_size}; the images of {data.name} have a fixed size")
        for key in ("normalize", "resize"):
            if value := getattr(data, key):
                raise RecipeError(f"data.{key} is {value!r}, which only 'classify' runs use; leave it empty")
        if data.name not in self.datasets:
            kind, known = self.recipe.task.kind, " or ".join((*self.datasets, *["csv:PATH"] * bool(self.columns)))
            raise RecipeError(f"data.name is {data.name!r}; a {kind!r} run learns from {known}")
        return load_texts(data.name, split)

    def check(self, data: DataSpec) -> None:
        """Raise RecipeError if the recipe asks for something that this task cannot do or does not use on such data."""
        kind, name = self.recipe.task.kind, self.recipe.data.name
        for key in (*self.unused, *(() if kind == "classify" else OF_CLASSIFIERS)):
            self.refuse_other_than_default(key)
        for key in OF_FOLDERS if not name.startswith(OWN) else ():
            if (value := getattr(self.recipe.data, key)) != DEFAULTS[f"data.{key}"]:
                own = ", ".join(f"{kind}PATH" for kind in OWN)
                raise RecipeError(f"data.{key} is {value!r}, which is for {own} only; leave it out")
        for key in OF_SOUNDS if not name.startswith(OWN_IMAGES[1]) else ():
            if value := getattr(self.recipe.data, key):
                raise RecipeError(f"data.{key} is {value}, which is for sounds of your own only; leave it out")
        augment = augmentation_of(self.recipe)
        for key in augment.used():
            if not self.sees_images or not data.shape:
                raise RecipeError(f"data.{key} is {getattr(augment, key)}, but a {kind!r} run on {name} has no images")
        for key in ("flip", "flip_alternating"):
            if getattr(augment, key) and (name in HANDED or name.startswith(OWN_IMAGES[1])):
                raise RecipeError(
                    f"data.{key} is True, but the labels of {name} tell left from right: leave images as they are"
                )
        self._check_augmentation(data, augment)
        for key in ("shift", "cutout"):
            if (value := getattr(augment, key)) and value >= min(data.shape[-2:]):
                side = " x ".join(map(str, data.shape[:-3:-1]))
                raise RecipeError(f"data.{key} is {value}; it must be less than the side of the images, {side} pixels")

    def refuse_other_than_default(self, key: str, when: str = "") -> None:
        """Raise RecipeError if the recipe sets a key, such as "task.hide", that this kind of task does not use.

        `when` names the condition under which it does not.
        """
        section, _, field = key.partition(".")
        value, default = getattr(getattr(self.recipe, section), field), DEFAULTS[key]
        if value != default:
            kind = f"a {self.recipe.task.kind!r} run{f' {when}' * bool(when)}"
            raise RecipeError(f"{key} is {value!r}, which {kind} does not use; leave it at {default!r}")

    def _check_augmentation(self, data: DataSpec, augment: Augment) -> None:
        """Raise RecipeError for changes that this task, or such images, do not allow."""
        keys, kind, name = self.recipe.data, self.recipe.task.kind, self.recipe.data.name
        for key in ("mixup", "cutmix"):
            if getattr(keys, key) and kind != "classify":
                raise RecipeError(
                    f"data.{key} is {getattr(keys, key)}, which is for 'classify' runs only; leave it at 0"
                )
        for key in ("repeats", "flip_alternating"):
            if getattr(keys, key) != DEFAULTS[f"data.{key}"] and (kind not in ("classify", "masked") or data.words):
                raise RecipeError(f"data.{key} is {getattr(keys, key)}, which is for runs on images without texts")
        for key in ("policy", "colour"):
            if key in augment.used() and (len(data.shape) != 3 or data.shape[0] not in (1, 3)):
                raise RecipeError(f"data.{key} is {getattr(keys, key)!r}, but {name} has no images in grey or colour")
        if augment.flip and augment.flip_alternating:
            raise RecipeError("data.flip and data.flip_alternating are both true; choose one")
        for key in ("policy_layers", "policy_strength"):
            if getattr(keys, key) != DEFAULTS[f"data.{key}"] and keys.policy != "rand":
                raise RecipeError(f"data.{key} is {getattr(keys, key)}, which is for data.policy = 'rand' only")

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
        """Return `batch` with what else its loss needs in `Batch.drawn`, such as random numbers; most need nothing."""
        return batch

    def loss(self, model: Module, batch: Batch) -> Tensor:
        """Return the loss to minimize, summed over the samples of a batch from `with_draws`.

        On a GPU the loss becomes part of a CUDA graph: the batch lies on the device and nothing may wait for its
        values. Whatever is random, or depends on the host, is therefore in the batch.
        """
        raise NotImplementedError

    def embed(self, model: Module, batch: Batch) -> tuple[Tensor, ...]:
        """Return what `compare` compares: tensors with a row for each sample, and without axes what all have in common.

        The first one has rows.
        """
        raise NotImplementedError

    def compare(self, *features: Tensor) -> Tensor:
        """Return the loss of a batch, summed over its samples, from the features of all of them."""
        raise NotImplementedError

    # Evaluation

    def evaluate(
        self,
        model: Module,
        dataset: Any,
        batch_size: int,
        after_batch: Callable[[], object] = lambda: None,
        group: Group | None = None,
    ) -> Report:
        """Measure `model` on all samples of `dataset`, in order and in eval mode.

        `after_batch` is called after each batch, and may raise an exception to stop. The processes of `group` measure
        the batches in turn; each of them returns the report on all.
        """
        group = group or Group()

        def measure_own() -> list[tuple[float, Any]]:
            found = []
            for start in range(group.rank * batch_size, len(dataset), group.size * batch_size):
                batch = dataset.batch(np.arange(start, min(start + batch_size, len(dataset))))
                found.append(self.measure(model, batch, start))
                after_batch()
            return found

        with no_grad(), eval_mode(model):
            by_rank = group.collect(measure_own)
        in_order = [found for turn in zip_longest(*by_rank) for found in turn if found is not None]
        loss = sum((batch_loss for batch_loss, _ in in_order), 0.0)
        return self.report(dataset, loss / len(dataset), [found for _, found in in_order])

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
        if report.top:
            lines += ["", *(f"top-{k} accuracy {100 * share:.2f} %" for k, share in report.top.items())]
        lines += [f"  {name}: {100 * share:.2f} %" for name, share in report.shares.items()]
        if mistakes := report.mistakes():
            texts = [f"{name!r} taken for {other!r} {counted(times, 'times')}" for name, other, times in mistakes]
            lines += ["", "most frequent mistakes: " + ", ".join(texts)]
        return "\n".join(lines)

    def summary(self, report: Report, count: int) -> list[str]:
        """Return the first lines of a described report: accuracy and loss."""
        share = f"{self.score} {100 * report.accuracy:.2f} %"
        return [f"{share} ({counted(count, self.samples)}), loss {report.loss:.4f}"]

    # Parts of models that tasks with texts share

    def vision(self, data: DataSpec, depth: int | None = None) -> ViT:
        """Return an image encoder: the ViT of the recipe without a head.

        A convolutional stem begins with He's weights, so that its outputs are not small beside its biases.
        """
        if (pool := self.recipe.model.pool) in ("cls_mean", "seq"):
            raise RecipeError(f"model.pool is {pool!r}, which only classifiers of images have")
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
