"""Retrieval: find the image that fits a text, and the text that fits an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import functional as F
from ..data import Batch, TextDataset
from ..data.own_texts import CAPTIONS
from ..engine import Tensor
from ..errors import RecipeError
from ..models import TextEncoder, TwoTowers
from ..nn import Module
from .base import DENSE, HIDING, DataSpec, Report, Task


class Retrieve(Task):
    """Pairs of image and text, each of which is to be found among all of its kind.

    The accuracy is the mean of recall@1 from image to text and from text to image, over the kinds of samples of the
    test split that are not counted apart.
    """

    samples = "pairs"
    unused = ("task.fusion", "task.word_prior", "train.label_smoothing", *HIDING, *DENSE)
    datasets = ("scenes-captions",)
    columns = CAPTIONS
    compares = True

    def build(self, data: DataSpec) -> TwoTowers:
        if self.recipe.data.batch_size < 2:
            raise RecipeError("data.batch_size is 1; pairs are contrasted with each other, so it must be at least 2")
        text = TextEncoder(len(data.words), max_length=data.lengths[0], **self.text_options())
        return TwoTowers(self.vision(data), text, self.recipe.model.dim)

    def embed(self, model: Module, batch: Batch) -> tuple[Tensor, ...]:
        return model(batch.images, batch.texts)

    def compare(self, *features: Tensor) -> Tensor:
        image, text, scale = features
        return F.contrastive_loss(image, text, scale) * image.shape[0]

    def loss(self, model: Module, batch: Batch) -> Tensor:
        return self.compare(*self.embed(model, batch))

    def measure(self, model: Any, batch: Batch, start: int) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
        """Return the loss, and the embeddings of images and of texts, (B, dim) each."""
        image, text, scale = model(batch.images, batch.texts)
        loss = F.contrastive_loss(image, text, scale).item() * len(batch.labels)
        return loss, (image.numpy(), text.numpy())

    def report(self, dataset: TextDataset, loss: float, measured: Sequence[tuple[np.ndarray, np.ndarray]]) -> Report:
        images, texts = (np.concatenate(parts) for parts in zip(*measured, strict=True))
        cosines = images @ texts.T
        shares: dict[str, float] = {}
        counted = []
        for number, kind in enumerate(dataset.kinds):
            chosen = np.flatnonzero(dataset.kind_of == number)
            if not chosen.size:  # a part of a split may have none of a kind
                continue
            image_to_text = cosines[np.ix_(chosen, chosen)]
            for direction, scores in (("image to text", image_to_text), ("text to image", image_to_text.T)):
                shares |= {f"{kind}, {direction}, recall@{k}": recall(scores, k) for k in (1, 5)}
                if kind not in dataset.apart:
                    counted.append(shares[f"{kind}, {direction}, recall@1"])
        return Report(loss, float(np.mean(counted)), shares)


def recall(scores: np.ndarray, k: int) -> float:
    """Return the share of rows of `scores` (n, n) whose diagonal entry is among the k best, ties counting against it.

    A row with a NaN on the diagonal, or with k NaN elsewhere, does not count as found.
    """
    return float((((~(scores < np.diag(scores)[:, None])).sum(axis=1) - 1) < k).mean())
