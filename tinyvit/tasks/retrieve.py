"""Finding the image that a text is about, and the text that is about an image."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import functional as F
from ..context import no_grad
from ..data import Batch
from ..engine import Tensor
from ..errors import RecipeError
from ..models import TextEncoder, TwoTowers
from ..nn import Module
from .base import DataSpec, Found, Task, batches, evaluating, nothing


class Retrieve(Task):
    """Pairs of image and text, each found among all of its kind.

    The accuracy is the mean of recall@1 from image to text and from text to image, among the samples of the test split
    that are not counted apart.
    """

    samples = "pairs"
    datasets = ("scenes-captions",)

    def build(self, data: DataSpec) -> TwoTowers:
        if self.recipe.data.batch_size < 2:
            raise RecipeError("data.batch_size is 1; a pair is told from others, so there must be at least 2")
        text = TextEncoder(len(data.words), max_length=data.lengths[0], **self.text_options())
        return TwoTowers(self.vision(data), text, self.recipe.model.dim)

    def loss(self, model: Module, batch: Batch) -> Tensor:
        return F.contrastive_loss(*model(batch.images, batch.texts)) * len(batch.labels)

    @no_grad()
    def evaluate(
        self, model: Any, dataset: Any, batch_size: int, after_batch: Callable[[], None] = nothing
    ) -> tuple[float, float, Found]:
        images, texts, loss = [], [], 0.0
        with evaluating(model):
            for _, batch in batches(dataset, batch_size):
                image, text, scale = model(batch.images, batch.texts)
                loss += F.contrastive_loss(image, text, scale).item() * len(batch.labels)
                images.append(image.numpy())
                texts.append(text.numpy())
                after_batch()
        cosines = np.concatenate(images) @ np.concatenate(texts).T
        found: dict[str, float] = {}
        for number, kind in enumerate(dataset.kinds):
            chosen = np.flatnonzero(dataset.kind_of == number)
            among = cosines[np.ix_(chosen, chosen)]
            for way, table in (("image to text", among), ("text to image", among.T)):
                found |= {f"{kind}, {way}, recall@{k}": recall(table, k) for k in (1, 5)}
        counted = [v for name, v in found.items() if name.endswith("@1") and name.split(",")[0] not in dataset.apart]
        return loss / len(dataset), float(np.mean(counted)), Found(found)


def recall(scores: np.ndarray, k: int) -> float:
    """The share of rows of `scores` (n, n) in which fewer than k others score as much as the one on the diagonal.

    Where there is a NaN, nothing is found.
    """
    return float((((~(scores < np.diag(scores)[:, None])).sum(axis=1) - 1) < k).mean())
