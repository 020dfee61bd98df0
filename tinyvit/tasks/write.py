"""Text generation: from another text, or about an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import functional as F
from ..backend import Array, as_array, to_device_of
from ..data import Batch, TextDataset
from ..data.own_texts import CAPTIONS, TRANSLATIONS
from ..data.tokenizer import PAD, SPECIAL, UNK
from ..engine import Tensor
from ..models import Captioner, EncoderDecoder, TextDecoder, greedy
from ..nn import Module
from .base import DENSE, HIDING, OF_IMAGES, DataSpec, Report, Task, accuracy_by_kind, count_confusions

_Texts = list[list[int]]  # token ids without special tokens


class Write(Task):
    """A text for each sample, which is right if every token is.

    Training gives the decoder the right tokens before each (teacher forcing); evaluation lets it write by itself
    (greedy decoding). The loss is the mean over the tokens.

    The preceding token alone predicts much of the next one, and a model learns that before it learns to read the
    source: if nothing blue is ever a circle, "blue" already argues against "circle". With task.word_prior, a table of
    such predictions is added to the logits in training (a product of experts) and left out in evaluation, so the model
    has no reason to learn what the table explains (Clark et al., Don't take the easy way out, 2019, section 3.2).
    """

    unused: tuple[str, ...] = ("task.fusion", *HIDING, *DENSE)
    prior: Array | None = None  # on the default device, where the model is too

    def prepare(self, train: Any) -> None:
        if self.recipe.task.word_prior:
            self.prior = as_array(word_prior(train.labels, len(train.tokenizer.words), self.recipe.task.word_prior))

    def source(self, batch: Batch) -> tuple[Any, ...]:
        """Return the part of a batch from which the texts are written: the arguments of the model's `encode`."""
        raise NotImplementedError

    def loss(self, model: Module, batch: Batch) -> Tensor:
        before, smoothing = batch.labels[:, :-1], self.recipe.train.label_smoothing
        source, *others = self.source(batch)
        logits = model(source, before, *others)
        if self.prior is not None:
            logits = logits + Tensor(self.prior[to_device_of(before, self.prior)].astype(logits.dtype))
        mean = F.cross_entropy(logits, batch.labels[:, 1:], ignore_index=PAD, label_smoothing=smoothing)
        return mean * len(batch.labels)

    def measure(self, model: Any, batch: Batch, start: int) -> tuple[float, tuple[_Texts, _Texts]]:
        """Return the loss, the texts that the model writes, and the texts that are expected."""
        context, mask = model.encode(*self.source(batch))
        logits = model.decoder(batch.labels[:, :-1], context, mask)
        mean = F.cross_entropy(logits, batch.labels[:, 1:], ignore_index=PAD)
        # A text with more tokens than the longest expected one is wrong, so writing may stop there.
        written = greedy(model.decoder, context, mask, batch.labels.shape[1] - 1)
        # A word that is not in the vocabulary is expected as `<unk>`, so that no text without it is right.
        expected = [[int(token) for token in row if token >= len(SPECIAL) or token == UNK] for row in batch.labels]
        return mean.item() * len(batch.labels), (written, expected)

    def report(self, dataset: TextDataset, loss: float, measured: Sequence[tuple[_Texts, _Texts]]) -> Report:
        pairs = [pair for batch in measured for pair in zip(*batch, strict=True)]
        accuracy, shares = accuracy_by_kind(dataset, np.array([written == expected for written, expected in pairs]))
        # Only in texts of equal length does each token written stand for one that is expected.
        same_length = [(written, expected) for written, expected in pairs if len(written) == len(expected)]
        aligned = [tokens for written, expected in same_length for tokens in zip(expected, written, strict=True)]
        actual, taken = np.array(aligned, np.int64).reshape(-1, 2).T
        words = dataset.tokenizer.words
        return Report(loss, accuracy, shares, words, count_confusions(actual, taken, len(words)))


def word_prior(texts: np.ndarray, vocabulary: int, share: float) -> np.ndarray:
    """Return the logarithm of the probability of each token after each: (tokens before, tokens after), float32.

    `share` of the probability is how often one token followed the other in texts (n, N); the rest is uniform.
    """
    counts = np.zeros((vocabulary, vocabulary))
    np.add.at(counts, (texts[:, :-1], texts[:, 1:]), 1)
    seen = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.log(share * seen + (1 - share) / vocabulary).astype(np.float32)


class Translate(Write):
    """A text for a text: an encoder-decoder with `model.depth` blocks on either side."""

    samples = "texts"
    unused = ("task.fusion", "task.text_depth", *HIDING, *DENSE, *OF_IMAGES)
    datasets = ("reverse",)
    columns = TRANSLATIONS

    def build(self, data: DataSpec) -> EncoderDecoder:
        options = self.text_options() | {"depth": self.recipe.model.depth}
        return EncoderDecoder(len(data.words), max_length=max(data.lengths), **options)

    def source(self, batch: Batch) -> tuple[Any, ...]:
        return (batch.texts,)


class Caption(Write):
    """A text for an image: a ViT and a decoder with `task.text_depth` blocks."""

    datasets = ("scenes-captions",)
    columns = CAPTIONS

    def build(self, data: DataSpec) -> Captioner:
        decoder = TextDecoder(len(data.words), max_length=data.lengths[1], **self.text_options())
        return Captioner(self.vision(data), decoder)

    def source(self, batch: Batch) -> tuple[Any, ...]:
        return (batch.images,) if batch.image_of is None else (batch.images, batch.image_of)
