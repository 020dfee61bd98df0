"""Learning without labels, from what is hidden."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .. import functional as F
from ..backend import default_generator
from ..context import no_grad
from ..data import Batch, load_dataset
from ..data.texts import TEXT_DATASETS
from ..engine import Tensor
from ..errors import RecipeError
from ..models import MaskedModel, TextEncoder
from ..models.masked import IGNORED, choose_patches, hide_words, visible_patches
from ..nn import Module
from ..nn.module import beside
from .base import AnyDataset, DataSpec, Found, Task, batches, evaluating, nothing


class Hidden(NamedTuple):
    """What is hidden of a batch: arrays, or None."""

    order: Any  # of the patches, (B, patches)
    words: Any  # as they are read, (B, N)
    asked: Any  # labels, (B, N)


class Mask(Task):
    """Hidden patches and words are told from the rest; `task.hide` says of which kind.

    The accuracy is the share of the hidden words that are right; with images alone, the share of the variance of the
    hidden pixels (each patch normalized) that is explained. What is hidden in training is drawn from the run's random
    stream, in the test from the number of the batch.
    """

    def _hides(self, kind: str) -> bool:
        return self.recipe.task.hide in (kind, "both")

    def load(self, split: str) -> AnyDataset:
        data = self.recipe.data
        if self._hides("words") or data.name in TEXT_DATASETS:
            return super().load(split)
        return load_dataset(data.name, split, image_size=data.image_size or None)

    def build(self, data: DataSpec) -> MaskedModel:
        model = self.recipe.model
        if self._hides("patches") and len(data.shape) != 3:
            raise RecipeError(f"task.hide is {self.recipe.task.hide!r}; patches are hidden of images, not of videos")
        vision = self.vision(data) if self._hides("patches") else None
        if vision is not None and math.prod(vision.patch_embed.grid) < 2:
            raise RecipeError(f"model.patch_size is {model.patch_size}; of the one patch none can be hidden")
        text = None
        if self._hides("words"):
            text = TextEncoder(len(data.words), max_length=data.lengths[0], **self.text_options())
        return MaskedModel(vision, text, model.dim, model.heads, len(data.words))

    def hidden(self, model: Any, batch: Batch, rng: np.random.Generator) -> Hidden:
        """Draw what is hidden of a batch."""
        order, words, asked = None, None, None
        if model.vision is not None:
            order = choose_patches(len(batch.labels), math.prod(model.vision.patch_embed.grid), rng)
        if model.text is not None:
            texts, vocabulary = np.asarray(batch.texts), model.to_words.weight.shape[0]
            words, asked = hide_words(texts, vocabulary, self.recipe.task.hide_words, rng)
        return Hidden(order, words, asked)

    def prepared(self, model: Module, batch: Batch) -> Batch:
        return replace(batch, drawn=self.hidden(model, batch, default_generator.numpy()))

    def loss(self, model: Module, batch: Batch) -> Tensor:
        return sum(self._parts(model, batch, Hidden(*batch.drawn))[0], Tensor(np.float32(0))) * len(batch.labels)

    def _visible(self, hidden: Hidden) -> int:
        """How many patches of an image are seen."""
        return 0 if hidden.order is None else visible_patches(hidden.order.shape[1], self.recipe.task.hide_patches)

    def _parts(self, model: Any, batch: Batch, hidden: Hidden) -> tuple[list[Tensor], Any, Any]:
        """The mean losses of pixels and words, and what is believed of each."""
        pixels, logits = model(batch.image_of_each, hidden.order, self._visible(hidden), hidden.words)
        losses = []
        if pixels is not None:
            truth = model.hidden_pixels(batch.image_of_each, hidden.order, self._visible(hidden))
            losses.append(F.mse_loss(pixels, beside(truth, pixels)))
        if logits is not None:
            losses.append(F.cross_entropy(logits, hidden.asked, ignore_index=IGNORED))
        return losses, pixels, logits

    @no_grad()
    def evaluate(
        self, model: Any, dataset: Any, batch_size: int, after_batch: Callable[[], None] = nothing
    ) -> tuple[float, float, Found]:
        loss = error = total = right = asked = 0.0
        with evaluating(model):
            for where, batch in batches(dataset, batch_size):
                hidden = self.hidden(model, batch, np.random.default_rng(where.start))
                losses, pixels, logits = self._parts(model, batch, hidden)
                loss += sum(part.item() for part in losses) * len(batch.labels)
                if pixels is not None:
                    truth = model.hidden_pixels(batch.image_of_each, hidden.order, self._visible(hidden))
                    error += float(((pixels.numpy() - truth) ** 2).sum())
                    total += float((truth**2).sum())
                if logits is not None:
                    chosen = hidden.asked != IGNORED
                    asked += chosen.sum()
                    right += (logits.numpy().argmax(axis=-1) == hidden.asked)[chosen].sum()
                after_batch()
        found = {}
        if total:
            found["variance of hidden pixels explained"] = 1 - error / total
        if asked:
            found["hidden words"] = float(right / asked)
        return loss / len(dataset), list(found.values())[-1], Found(found)
