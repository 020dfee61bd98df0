"""Pre-training without labels: hidden patches and words are predicted from the visible ones."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .. import functional as F
from ..backend import default_generator
from ..data import Batch, load_dataset, load_masks
from ..data.own_texts import CAPTIONS
from ..data.texts import TEXT_DATASETS
from ..data.things import THINGS
from ..engine import Tensor
from ..errors import RecipeError
from ..functional.tensors import on_device_of
from ..models import MaskedModel, TextEncoder
from ..models.masked import IGNORED, choose_patches, hide_tokens, visible_patches
from ..nn import Module
from .base import DENSE, Task
from .options import OWN_IMAGES, TABLE, load_images
from .report import Report
from .spec import AnyDataset, DataSpec


class Hidden(NamedTuple):
    """What is hidden of a batch: arrays, or None for a kind that is not hidden."""

    order: Any  # of the patches, (B, patches); the first ones are visible
    words: Any  # token ids as the model reads them, (B, N)
    targets: Any  # the right token ids where the loss counts, `IGNORED` elsewhere, (B, N)


class Mask(Task):
    """Predict hidden patches, hidden words, or both, as the key task.hide says.

    The accuracy is the share of the hidden words that are predicted right; with images alone, the share of the variance
    of the hidden pixels (each patch normalized) that is explained. Training draws what is hidden from the run's random
    stream; evaluation draws it from the number of each batch, so that it is always the same.
    """

    columns = CAPTIONS

    @property
    def score(self) -> str:  # type: ignore[override]
        return "accuracy of hidden words" if self._hides("words") else "variance explained"

    @property
    def unused(self) -> tuple[str, ...]:  # type: ignore[override]
        shares = [f"task.hide_{kind}" for kind in ("patches", "words") if not self._hides(kind)]
        texts = () if self._hides("words") else ("task.text_depth",)
        own = self.recipe.data.name.startswith(OWN_IMAGES)
        reading = ("data.normalize",) if own else ("data.normalize", "data.resize")
        return ("task.fusion", "task.word_prior", "train.label_smoothing", *shares, *texts, *DENSE, *reading)

    @property
    def sees_images(self) -> bool:
        return self._hides("patches")

    def _hides(self, kind: str) -> bool:
        return self.recipe.task.hide in (kind, "both")

    def load(self, split: str, like: Any = None) -> AnyDataset | None:
        data = self.recipe.data
        if self._hides("words") or data.name in TEXT_DATASETS or data.name.startswith(TABLE):
            return super().load(split, like)
        if data.name.startswith(OWN_IMAGES):
            return load_images(self.recipe, split, like)
        if split == "validation":
            return None
        if data.name in THINGS or data.name.startswith("coco:"):
            return load_masks(data.name, split, data.image_size or None)
        return load_dataset(data.name, split, image_size=data.image_size or None)

    def build(self, data: DataSpec) -> MaskedModel:
        model = self.recipe.model
        if self._hides("patches") and len(data.shape) != 3:
            raise RecipeError(
                f"task.hide is {self.recipe.task.hide!r}; patches are hidden of images, not of videos or texts"
            )
        vision = self.vision(data) if self._hides("patches") else None
        if vision is not None and math.prod(vision.patch_embed.grid) < 2:
            raise RecipeError(f"model.patch_size is {model.patch_size}; the image is one patch, which cannot be hidden")
        text = None
        if self._hides("words"):
            text = TextEncoder(len(data.words), max_length=data.lengths[0], **self.text_options())
        return MaskedModel(vision, text, model.dim, model.heads, len(data.words))

    def draw_hidden(self, model: Any, batch: Batch, rng: np.random.Generator) -> Hidden:
        """Draw what is hidden of a batch."""
        order, words, targets = None, None, None
        if model.vision is not None:
            order = choose_patches(len(batch.labels), math.prod(model.vision.patch_embed.grid), rng)
        if model.text is not None:
            texts, vocabulary = np.asarray(batch.texts), model.to_words.weight.shape[0]
            words, targets = hide_tokens(texts, vocabulary, self.recipe.task.hide_words, rng)
        return Hidden(order, words, targets)

    def with_draws(self, model: Module, batch: Batch) -> Batch:
        return replace(batch, drawn=self.draw_hidden(model, batch, default_generator.numpy()))

    def loss(self, model: Module, batch: Batch) -> Tensor:
        losses, _, _, _ = self._predict(model, batch, Hidden(*batch.drawn))
        return sum(losses, Tensor(np.float32(0))) * len(batch.labels)

    def _predict(self, model: Any, batch: Batch, hidden: Hidden) -> tuple[list[Tensor], Any, Any, Any]:
        """Return the mean losses of pixels and words, the predicted and the true pixels, and the logits of words."""
        visible = 0
        if hidden.order is not None:
            visible = visible_patches(hidden.order.shape[1], self.recipe.task.hide_patches)
        pixels, logits = model(batch.image_of_each, hidden.order, visible, hidden.words)
        losses, truth = [], None
        if pixels is not None:
            truth = model.hidden_pixels(batch.image_of_each, hidden.order, visible)
            losses.append(F.mse_loss(pixels, on_device_of(truth, pixels)))
        if logits is not None:
            losses.append(F.cross_entropy(logits, hidden.targets, ignore_index=IGNORED))
        return losses, pixels, truth, logits

    def measure(self, model: Any, batch: Batch, start: int) -> tuple[float, tuple[float, float, int, int]]:
        """Return the loss, then the squared error and the squared size of the hidden pixels, the hidden words that are
        right, and the number of hidden words."""
        hidden = self.draw_hidden(model, batch, np.random.default_rng(start))
        losses, pixels, truth, logits = self._predict(model, batch, hidden)
        error = size = 0.0
        right = words = 0
        if pixels is not None:
            error = float(((pixels.numpy() - truth) ** 2).sum())
            size = float((truth**2).sum())
        if logits is not None:
            chosen = hidden.targets != IGNORED
            words = int(chosen.sum())
            right = int((logits.numpy().argmax(axis=-1) == hidden.targets)[chosen].sum())
        return sum(part.item() for part in losses) * len(batch.labels), (error, size, right, words)

    def report(self, dataset: Any, loss: float, measured: Sequence[tuple[float, float, int, int]]) -> Report:
        error, size, right, words = (sum(values) for values in zip(*measured, strict=True))
        shares = {}
        if size or error:  # images of one colour have no variance
            shares["variance of hidden pixels explained"] = 1 - error / size if size else 0.0
        if words:
            shares["hidden words"] = right / words
        return Report(loss, list(shares.values())[-1], shares)
