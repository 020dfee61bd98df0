"""Writing with a `TextDecoder`, word by word: the likeliest, a drawn one, or the best of several texts.

All begin with `<start>`, end with `<end>` or after `max_length` words (by default, as many as the decoder can write),
and return, for each row of the context, the numbers of the words between. The decoder must be in eval mode, or dropout
acts.
"""

from typing import Any

import numpy as np

from ..backend import Generator, default_generator
from ..context import no_grad
from ..data.tokenizer import END, PAD, START
from ..engine import Tensor
from .text import TextDecoder

NEVER = [PAD, START]  # what no text holds


class _Writing:
    """Rows of words under way, and the decoder's cache of them."""

    def __init__(self, decoder: TextDecoder, context: Tensor, context_mask: Any, max_length: int | None) -> None:
        longest = decoder.embedding.max_length
        self.max_length = longest if max_length is None else max_length
        if not 1 <= self.max_length <= longest:
            raise ValueError(f"max_length is {max_length}; it must be from 1 to {longest}")
        self.decoder, self.context, self.mask = decoder, context, context_mask
        self.cache = decoder.new_cache()
        self.words = np.full((context.shape[0], 1), START, np.int64)

    def next_logits(self) -> np.ndarray:
        """Of the next word of each row, (B, vocabulary) float64, with -inf for what no text holds."""
        logits = self.decoder(self.words[:, -1:], self.context, self.mask, self.cache).numpy()[:, 0].astype(np.float64)
        logits[:, NEVER] = -np.inf
        return logits

    def add(self, words: np.ndarray) -> bool:
        """Write the next word of each row, padding where it has ended; whether all have."""
        words = np.where(self.ended(), PAD, words)
        self.words = np.concatenate([self.words, words[:, None]], axis=1)
        return bool(self.ended().all())

    def ended(self) -> np.ndarray:
        return (self.words == END).any(axis=1)

    def select(self, rows: np.ndarray) -> None:
        self.words = self.words[rows]
        self.cache.select(rows)

    def texts(self) -> list[list[int]]:
        return [[int(w) for w in row if w not in (PAD, START, END)] for row in self.words]


@no_grad()
def greedy(
    decoder: TextDecoder, context: Tensor, context_mask: Any = None, max_length: int | None = None
) -> list[list[int]]:
    """Take the likeliest word each time."""
    writing = _Writing(decoder, context, context_mask, max_length)
    for _ in range(writing.max_length):
        if writing.add(writing.next_logits().argmax(axis=1)):
            break
    return writing.texts()


@no_grad()
def sample(
    decoder: TextDecoder,
    context: Tensor,
    context_mask: Any = None,
    max_length: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: Generator | None = None,
) -> list[list[int]]:
    """Draw each word by its probability.

    Parameters
    ----------
    temperature : above 0; the logits are divided by it.
    top_k : only the so many likeliest words are drawn from (0: all).
    top_p : only the likeliest words that together have this probability are drawn from (Holtzman et al., 2020).
    generator : random stream, the default one if omitted.
    """
    if not temperature > 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature is {temperature}, top_k {top_k} and top_p {top_p}; "
            "they must be above 0, at least 0, and above 0 up to 1"
        )
    writing = _Writing(decoder, context, context_mask, max_length)
    for _ in range(writing.max_length):
        probabilities = kept_probabilities(writing.next_logits() / temperature, top_k, top_p)
        drawn = (generator or default_generator).numpy().random((len(probabilities), 1))
        cumulated = probabilities.cumsum(axis=1)
        if writing.add((cumulated <= drawn * cumulated[:, -1:]).sum(axis=1)):
            break
    return writing.texts()


def kept_probabilities(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """softmax of logits (B, V) over the `top_k` likeliest, and of these over the fewest that reach `top_p`."""
    order = np.argsort(-logits, axis=1, kind="stable")
    ranked = np.exp(np.take_along_axis(logits, order, axis=1) - logits.max(axis=1, keepdims=True))
    ranked[:, top_k or ranked.shape[1] :] = 0
    ranked /= ranked.sum(axis=1, keepdims=True)
    before = ranked.cumsum(axis=1) - ranked
    ranked[before >= top_p] = 0
    probabilities = np.empty_like(ranked)
    np.put_along_axis(probabilities, order, ranked / ranked.sum(axis=1, keepdims=True), axis=1)
    return probabilities


@no_grad()
def beam_search(
    decoder: TextDecoder,
    context: Tensor,
    context_mask: Any = None,
    max_length: int | None = None,
    beams: int = 4,
    length_penalty: float = 0.6,
) -> list[list[int]]:
    """Follow the `beams` likeliest texts, and return the best of those left at the end.

    The best has the greatest log-probability divided by ((5 + words) / 6)^length_penalty, `<end>` counted as a word
    (Wu et al., Google's neural machine translation system, 2016, equation 14). One beam is `greedy`.
    """
    if beams < 1:
        raise ValueError(f"beams is {beams}; it must be 1 or more")
    count = context.shape[0]
    rows = np.repeat(np.arange(count), beams)
    mask = None if context_mask is None else np.asarray(context_mask)[rows]
    writing = _Writing(decoder, context[rows], mask, max_length)
    scores = np.where(np.arange(count * beams) % beams == 0, 0.0, -np.inf)  # all beams of a row are equal yet
    for _ in range(writing.max_length):
        candidates = scores[:, None] + _continuations(writing.next_logits(), writing.ended())
        vocabulary = candidates.shape[1]
        best = np.argsort(-candidates.reshape(count, -1), axis=1, kind="stable")[:, :beams]
        scores = np.take_along_axis(candidates.reshape(count, -1), best, axis=1).reshape(-1)
        writing.select((best // vocabulary + beams * np.arange(count)[:, None]).reshape(-1))
        if writing.add((best % vocabulary).reshape(-1)):
            break
    words = (writing.words != PAD).sum(axis=1) - 1
    final = (scores / ((5 + words) / 6) ** length_penalty).reshape(count, beams)
    texts = writing.texts()
    return [texts[row * beams + best] for row, best in enumerate(final.argmax(axis=1))]


def _continuations(logits: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """The log-probability of each next word (B, V); a text that has ended goes on with padding, at no cost."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    result[ended] = -np.inf
    result[ended, PAD] = 0.0
    return result
