"""The text side of every model: words to vectors, an encoder that reads, a decoder that writes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import functional as F
from ..data.tokenizer import PAD
from ..engine import Tensor
from ..functional.elementwise import constant
from ..nn import Dropout, Embedding, KeyValueCache, Linear, Module, Parameter, TransformerDecoder, TransformerEncoder
from ..nn import init as initial
from ..nn.patches import sincos1d

POSITIONS = ("sincos", "learned")


class TextEmbedding(Module):
    """Numbers of words to vectors with positions: (B, N) -> (B, N, dim).

    Vectors are drawn with variance 1 / dim and multiplied by sqrt(dim), so that the same table can serve as the last
    linear map of a decoder (Vaswani et al., 2017, section 3.4).

    Parameters
    ----------
    vocabulary : how many words there are.
    max_length : how many a text may have.
    positions : {"sincos", "learned"}
    """

    def __init__(
        self, vocabulary: int, dim: int, max_length: int, positions: str = "sincos", dropout: float = 0.0
    ) -> None:
        if positions not in POSITIONS:
            raise ValueError(f"positions is {positions!r}; it must be one of {', '.join(POSITIONS)}")
        self.max_length, self.scale = max_length, dim**0.5
        self.words = Embedding(vocabulary, dim)
        self.words.weight.assign(initial.trunc_normal((vocabulary, dim), dim**-0.5))
        learned = positions == "learned"
        self.pos_embed: Tensor = (
            Parameter(initial.trunc_normal((max_length, dim))) if learned else Tensor(sincos1d(max_length, dim))
        )
        self.drop = Dropout(dropout)

    def forward(self, ids: Any, start: int = 0) -> Tensor:
        """`start` is how many words came before these. Raises ValueError if there are more than `max_length`."""
        ids = constant(ids)
        if ids.ndim != 2 or start + ids.shape[1] > self.max_length:
            raise ValueError(
                f"ids have shape {ids.shape} after {start} words; they must be (B, N), of at most {self.max_length} "
                "words in all"
            )
        words = self.words(ids)
        return self.drop(words * self.scale + self.pos_embed[start : start + ids.shape[1]].to(words.dtype))


def words_mask(ids: Any) -> Any:
    """Which words may be looked at, (B, 1, 1, N): all but the padding."""
    return (constant(ids) != PAD)[:, None, None, :]


class TextEncoder(Module):
    """Reads a text: numbers of words (B, N) -> (B, N, dim). Padding is not looked at."""

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        max_length: int = 64,
        norm: str = "pre",
        positions: str = "sincos",
        dropout: float = 0.0,
        embedding: TextEmbedding | None = None,
    ) -> None:
        self.embedding = embedding or TextEmbedding(vocabulary, dim, max_length, positions, dropout)
        self.encoder = TransformerEncoder(dim, depth, heads, mlp_dim, norm, dropout)

    def forward(self, ids: Any) -> Tensor:
        return self.encoder(self.embedding(ids), words_mask(ids))


class DecoderCache:
    """What a `TextDecoder` remembers of the words so far, so that the next costs one word."""

    def __init__(self, blocks: Sequence[tuple[KeyValueCache, KeyValueCache]]) -> None:
        self.blocks, self.length = blocks, 0

    def select(self, rows: np.ndarray) -> None:
        """Keep these rows of the batch, in this order."""
        for block in self.blocks:
            for cache in block:
                cache.select(rows)


class TextDecoder(Module):
    """Writes a text about a context: words so far (B, N), context (B, S, context_dim) -> logits (B, N, vocabulary).

    The logits at word n are of the word after it, and depend on words 0 to n only. With `tied`, the embeddings of the
    words are the last linear map too.
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        context_dim: int | None = None,
        max_length: int = 64,
        norm: str = "pre",
        positions: str = "sincos",
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        self.embedding = TextEmbedding(vocabulary, dim, max_length, positions, dropout)
        self.decoder = TransformerDecoder(dim, depth, heads, mlp_dim, context_dim, norm, dropout)
        self.head = None if tied else Linear(dim, vocabulary)

    def new_cache(self) -> DecoderCache:
        return DecoderCache(self.decoder.new_caches())

    def forward(self, ids: Any, context: Tensor, context_mask: Any = None, cache: DecoderCache | None = None) -> Tensor:
        """With a cache, `ids` are the words that follow those of earlier calls."""
        start, caches = (0, None) if cache is None else (cache.length, cache.blocks)
        x = self.embedding(ids, start)
        if cache is not None:
            cache.length += x.shape[1]
        x = self.decoder(x, context, None, context_mask, caches)
        return F.linear(x, self.embedding.words.weight) if self.head is None else self.head(x)
