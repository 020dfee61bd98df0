"""Writing texts: from another text, or about an image."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import functional as F
from ..autograd import Tensor, no_grad
from ..backend import default_generator
from ..data import Batch
from ..data.tokenizer import MASK, PAD, SPECIAL
from ..models import Captioner, EncoderDecoder, TextDecoder, greedy
from ..nn import Module
from .base import DataSpec, Found, Task, batches, by_kind, evaluating, nothing


class Write(Task):
    """A text for each sample, right if every word is.

    Training gives the decoder the right words before each (teacher forcing), some of them as `<mask>` by
    task.word_dropout (Bowman et al., Generating sentences from a continuous space, 2016): what it cannot read before,
    it must see in the source. The test lets it write by itself. The loss is the mean over the words.
    """

    def source(self, batch: Batch) -> Any:
        """What the text is written from."""
        raise NotImplementedError

    def loss(self, model: Module, batch: Batch) -> Tensor:
        before, smoothing = batch.labels[:, :-1], self.recipe.train.label_smoothing
        if self.recipe.task.word_dropout:
            dropped = default_generator.numpy().random(before.shape) < self.recipe.task.word_dropout
            before = np.where(dropped & (before >= len(SPECIAL)), MASK, before)
        logits = model(self.source(batch), before)
        mean = F.cross_entropy(logits, batch.labels[:, 1:], ignore_index=PAD, label_smoothing=smoothing)
        return mean * len(batch.labels)

    @no_grad()
    def evaluate(
        self, model: Any, dataset: Any, batch_size: int, after_batch: Callable[[], None] = nothing
    ) -> tuple[float, float, Found]:
        right, loss, words = np.zeros(len(dataset), bool), 0.0, dataset.tokenizer.words
        confusion = np.zeros((len(words),) * 2, np.int64)
        longest = dataset.labels.shape[1] - 1
        with evaluating(model):
            for where, batch in batches(dataset, batch_size):
                context, mask = model.encode(self.source(batch))
                logits = model.decoder(batch.labels[:, :-1], context, mask)
                mean = F.cross_entropy(logits, batch.labels[:, 1:], ignore_index=PAD)
                loss += mean.item() * len(batch.labels)
                written = greedy(model.decoder, context, mask, longest)
                expected = [[int(w) for w in row if w >= len(SPECIAL)] for row in batch.labels]
                right[where] = [a == b for a, b in zip(written, expected, strict=True)]
                for given, wanted in zip(written, expected, strict=True):
                    if len(given) == len(wanted):  # else no word stands for another
                        np.add.at(confusion, (wanted, given), 1)
                after_batch()
        accuracy, shares = by_kind(dataset, right)
        return loss / len(dataset), accuracy, Found(shares, words, confusion)


class Translate(Write):
    """A text for a text: an encoder-decoder with `model.depth` blocks on either side."""

    samples = "texts"

    def build(self, data: DataSpec) -> EncoderDecoder:
        options = self.text_options() | {"depth": self.recipe.model.depth}
        return EncoderDecoder(len(data.words), max_length=max(data.lengths), **options)

    def source(self, batch: Batch) -> Any:
        return batch.texts


class Caption(Write):
    """A text for an image: a ViT and a decoder with `task.text_depth` blocks."""

    def build(self, data: DataSpec) -> Captioner:
        decoder = TextDecoder(len(data.words), max_length=data.lengths[1], **self.text_options())
        return Captioner(self.vision(data), decoder)

    def source(self, batch: Batch) -> Any:
        return batch.images
