"""Answering questions about images, in three ways."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import functional as F
from ..context import no_grad
from ..data import Batch
from ..engine import Tensor
from ..models import VQA, ConvEncoder, CrossFusion, JointFusion, ProductFusion, TextEmbedding, TextEncoder
from ..nn import Module
from .base import DataSpec, Found, Task, batches, by_kind, evaluating, nothing


class Answer(Task):
    """One of the answers of the data set for each question about an image.

    task.fusion = "cnn" is a convolutional encoder, a text encoder, and their product; "cross" is a ViT whose patches
    the words of the question look at; "joint" is one Transformer over patches and words. See `tinyvit.models.vqa`.
    """

    samples = "questions"
    datasets = ("easy-vqa", "scenes-questions")

    def build(self, data: DataSpec) -> VQA:
        model, text = self.recipe.model, self.text_options()
        encoder_options: dict[str, Any] = {"vocabulary": len(data.words), "max_length": data.lengths[0]}
        fusion_options = {key: text[key] for key in ("dim", "heads", "mlp_dim", "dropout")}
        vision: Any
        words: Module
        fusion: Module
        if self.recipe.task.fusion == "cnn":
            channels, height, width = data.shape
            vision = ConvEncoder((height, width), channels, model.dim)
            words, fusion = TextEncoder(**text, **encoder_options), ProductFusion(model.dim)
        elif self.recipe.task.fusion == "cross":
            vision, words = self.vision(data), TextEncoder(**text, **encoder_options)
            fusion = CrossFusion(depth=self.recipe.task.text_depth, **fusion_options)
        else:
            vision = self.vision(data, depth=0)
            words = TextEmbedding(dim=model.dim, **encoder_options, dropout=model.emb_dropout)
            fusion = JointFusion(depth=model.depth, **fusion_options)
        return VQA(vision, words, fusion, model.dim, len(data.classes))

    def loss(self, model: Module, batch: Batch) -> Tensor:
        smoothing = self.recipe.train.label_smoothing
        logits = model(batch.images, batch.texts, batch.image_of)
        return F.cross_entropy(logits, batch.labels, label_smoothing=smoothing, reduction="sum")

    @no_grad()
    def evaluate(
        self, model: Module, dataset: Any, batch_size: int, after_batch: Callable[[], None] = nothing
    ) -> tuple[float, float, Found]:
        right, loss = np.zeros(len(dataset), bool), 0.0
        confusion = np.zeros((len(dataset.classes),) * 2, np.int64)
        with evaluating(model):
            for where, batch in batches(dataset, batch_size):
                logits = model(batch.images, batch.texts, batch.image_of)
                loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
                answers = logits.numpy().argmax(axis=1)
                right[where] = answers == batch.labels
                np.add.at(confusion, (batch.labels, answers), 1)
                after_batch()
        accuracy, shares = by_kind(dataset, right)
        return loss / len(dataset), accuracy, Found(shares, dataset.classes, confusion)
