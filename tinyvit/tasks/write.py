"""Writing texts: from another text, or about an image."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import functional as F
from ..backend import Array, as_array, to_device_of
from ..context import no_grad
from ..data import Batch
from ..data.tokenizer import PAD, SPECIAL
from ..engine import Tensor
from ..models import Captioner, EncoderDecoder, TextDecoder, greedy
from ..nn import Module
from .base import DataSpec, Found, Task, batches, by_kind, evaluating, nothing


class Write(Task):
    """A text for each sample, right if every word is.

    Training gives the decoder the right words before each (teacher forcing); the test lets it write by itself. The
    loss is the mean over the words.

    What a word gives away about the next is learnt sooner than what the source says: if nothing blue is ever a circle,
    "blue" alone speaks against "circle". With task.word_prior, a table of such guesses learns beside the model, as a
    product of experts, and is left out in the test (Clark et al., Don't take the easy way out, 2019, section 3.2): what
    the table explains is no reason for the model to learn it.
    """

    prior: Array | None = None  # on the device of the model, which is the default one

    def learn_from(self, train: Any) -> None:
        if self.recipe.task.word_prior:
            self.prior = as_array(word_prior(train.labels, len(train.tokenizer.words), self.recipe.task.word_prior))

    def source(self, batch: Batch) -> Any:
        """What the text is written from."""
        raise NotImplementedError

    def loss(self, model: Module, batch: Batch) -> Tensor:
        before, smoothing = batch.labels[:, :-1], self.recipe.train.label_smoothing
        logits = model(self.source(batch), before)
        if self.prior is not None:
            logits = logits + Tensor(self.prior[to_device_of(before, self.prior)].astype(logits.dtype))
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


def word_prior(texts: np.ndarray, vocabulary: int, share: float) -> np.ndarray:
    """The logarithm of how probable each word is after each: (words before, words after), float32.

    `share` of it is how often one followed the other in texts (n, N); the rest is the same for all words.
    """
    counts = np.zeros((vocabulary, vocabulary))
    np.add.at(counts, (texts[:, :-1], texts[:, 1:]), 1)
    seen = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.log(share * seen + (1 - share) / vocabulary).astype(np.float32)


class Translate(Write):
    """A text for a text: an encoder-decoder with `model.depth` blocks on either side."""

    samples = "texts"
    datasets = ("reverse",)

    def build(self, data: DataSpec) -> EncoderDecoder:
        options = self.text_options() | {"depth": self.recipe.model.depth}
        return EncoderDecoder(len(data.words), max_length=max(data.lengths), **options)

    def source(self, batch: Batch) -> Any:
        return batch.texts


class Caption(Write):
    """A text for an image: a ViT and a decoder with `task.text_depth` blocks."""

    datasets = ("scenes-captions",)

    def build(self, data: DataSpec) -> Captioner:
        decoder = TextDecoder(len(data.words), max_length=data.lengths[1], **self.text_options())
        return Captioner(self.vision(data), decoder)

    def source(self, batch: Batch) -> Any:
        return batch.images
