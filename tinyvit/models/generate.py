"""Writing with a `TextDecoder`, token by token: the likeliest, a drawn one, or the best of several texts.

Every text begins with `<start>` and ends with `<end>` or after `max_length` tokens (by default, as many as the decoder
can write). The functions return, for each row of the context, the token ids between. The decoder must be in eval mode,
or dropout acts.
"""

from typing import Any

import numpy as np

from ..data.tokenizer import END, PAD, START
from ..functional.tensors import Generator, Tensor, default_generator, no_grad
from .text import TextDecoder

NEVER = [PAD, START]  # tokens that are never generated


class _Writing:
    """Unfinished texts, a row each, and the decoder's cache of them."""

    def __init__(self, decoder: TextDecoder, context: Tensor, context_mask: Any, max_length: int | None) -> None:
        longest = decoder.embedding.max_length
        self.max_length = longest if max_length is None else max_length
        if not 1 <= self.max_length <= longest:
            raise ValueError(f"max_length is {max_length}; it must be from 1 to {longest}")
        self.decoder, self.context, self.mask = decoder, context, context_mask
        self.cache = decoder.new_cache()
        self.ids = np.full((context.shape[0], 1), START, np.int64)

    def next_logits(self) -> np.ndarray:
        """Return the logits of each row's next token, (B, vocabulary) float64; -inf for tokens never generated."""
        logits = self.decoder(self.ids[:, -1:], self.context, self.mask, self.cache).numpy()[:, 0].astype(np.float64)
        logits[:, NEVER] = -np.inf
        return logits

    def add(self, ids: np.ndarray) -> bool:
        """Write the next token of each row, padding where it has ended; return whether all have."""
        ids = np.where(self.ended(), PAD, ids)
        self.ids = np.concatenate([self.ids, ids[:, None]], axis=1)
        return bool(self.ended().all())

    def ended(self) -> np.ndarray:
        return (self.ids == END).any(axis=1)

    def select(self, rows: np.ndarray) -> None:
        self.ids = self.ids[rows]
        self.cache.select(rows)

    def texts(self) -> list[list[int]]:
        return [[int(i) for i in row if i not in (PAD, START, END)] for row in self.ids]


@no_grad()
def greedy(
    decoder: TextDecoder, context: Tensor, context_mask: Any = None, max_length: int | None = None
) -> list[list[int]]:
    """Take the likeliest token each time."""
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
    """Draw each token by its probability.

    Parameters
    ----------
    temperature : above 0; the logits are divided by it.
    top_k : how many of the likeliest tokens are drawn from (0: all).
    top_p : only the likeliest tokens that together have this probability are drawn from (Holtzman et al., 2020).
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
    """Return the softmax of logits (B, V) over the `top_k` likeliest, and of these the fewest that reach `top_p`."""
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

    The best has the greatest log-probability divided by ((5 + tokens) / 6)^length_penalty, `<end>` counted as a token
    (Wu et al., Google's neural machine translation system, 2016, equation 14). One beam is `greedy`.
    """
    if beams < 1:
        raise ValueError(f"beams is {beams}; it must be 1 or more")
    count = context.shape[0]
    rows = np.repeat(np.arange(count), beams)
    mask = None if context_mask is None else np.asarray(context_mask)[rows]
    writing = _Writing(decoder, context[rows], mask, max_length)
    scores = np.where(np.arange(count * beams) % beams == 0, 0.0, -np.inf)  # all beams of a row start identical
    for _ in range(writing.max_length):
        candidates = scores[:, None] + _continuations(writing.next_logits(), writing.ended())
        vocabulary = candidates.shape[1]
        best = np.argsort(-candidates.reshape(count, -1), axis=1, kind="stable")[:, :beams]
        scores = np.take_along_axis(candidates.reshape(count, -1), best, axis=1).reshape(-1)
        writing.select((best // vocabulary + beams * np.arange(count)[:, None]).reshape(-1))
        if writing.add((best % vocabulary).reshape(-1)):
            break
    lengths = (writing.ids != PAD).sum(axis=1) - 1
    final = (scores / ((5 + lengths) / 6) ** length_penalty).reshape(count, beams)
    texts = writing.texts()
    return [texts[row * beams + best] for row, best in enumerate(final.argmax(axis=1))]


def _continuations(logits: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """Return the log-probability of each next token (B, V); an ended text continues with padding, at no cost."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    result[ended] = -np.inf
    result[ended, PAD] = 0.0
    return result
