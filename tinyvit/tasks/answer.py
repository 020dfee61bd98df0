"""Visual question answering, by three kinds of models."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import functional as F
from ..data import Batch, TextDataset
from ..data.own_texts import QUESTIONS
from ..engine import Tensor
from ..models import VQA, ConvEncoder, CrossFusion, JointFusion, ProductFusion, TextEmbedding, TextEncoder
from ..nn import Module
from .base import DENSE, HIDING, DataSpec, Report, Task, accuracy_by_kind, count_confusions


class Answer(Task):
    """One of the answers of the data set for each question about an image.

    The key task.fusion chooses the model: "cnn" multiplies the outputs of a convolutional encoder and a text encoder;
    with "cross" the words of the question attend to the patches of a ViT; "joint" is one Transformer over patches and
    words. See `tinyvit.models.vqa`.
    """

    samples = "questions"
    unused = ("task.word_prior", *HIDING, *DENSE)
    datasets = ("easy-vqa", "scenes-questions")
    columns = QUESTIONS

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

    def measure(self, model: Any, batch: Batch, start: int) -> tuple[float, np.ndarray]:
        logits = model(batch.images, batch.texts, batch.image_of)
        loss = F.cross_entropy(logits, batch.labels, reduction="sum").item()
        return loss, logits.numpy().argmax(axis=1)

    def report(self, dataset: TextDataset, loss: float, measured: Sequence[np.ndarray]) -> Report:
        answers = np.concatenate(measured)
        accuracy, shares = accuracy_by_kind(dataset, answers == dataset.labels)
        confusion = count_confusions(dataset.labels, answers, len(dataset.classes))
        return Report(loss, accuracy, shares, dataset.classes, confusion)
