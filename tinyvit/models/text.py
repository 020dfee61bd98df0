"""The text side of every model: an embedding of token ids, an encoder that reads, a decoder that writes."""

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from .. import functional as F
from ..data.tokenizer import PAD
from ..functional.tensors import Tensor, check_flags, constant
from ..nn import Dropout, Embedding, KeyValueCache, Linear, Module, Parameter, TransformerDecoder, TransformerEncoder
from ..nn import init as initial
from ..nn.patches import sincos1d

POSITIONS = ("sincos", "learned")


class TextOptions(TypedDict, total=False):
    """What text encoders and decoders pass on to their `TextEmbedding`, where the defaults are.

    max_length : tokens that a text may have.
    positions : {"sincos", "learned"}
    """

    max_length: int
    positions: str


class TextEmbedding(Module):
    """Token ids to vectors with positions: (B, N) -> (B, N, dim).

    Vectors are drawn with variance 1 / dim and multiplied by sqrt(dim), so that the same table can serve as the last
    linear map of a decoder (Vaswani et al., 2017, section 3.4).

    Parameters
    ----------
    vocabulary : number of different tokens.
    max_length : tokens that a text may have.
    positions : {"sincos", "learned"}
    """

    def __init__(
        self, vocabulary: int, dim: int, max_length: int = 64, positions: str = "sincos", dropout: float = 0.0
    ) -> None:
        if positions not in POSITIONS:
            raise ValueError(f"positions is {positions!r}; it must be one of {', '.join(POSITIONS)}")
        initial.check_sizes("TextEmbedding", vocabulary=vocabulary, dim=dim, max_length=max_length)
        self.max_length, self.scale = max_length, dim**0.5
        self.words = Embedding(vocabulary, dim)
        self.words.weight.assign(initial.trunc_normal((vocabulary, dim), dim**-0.5))
        learned = positions == "learned"
        self.pos_embed: Tensor = (
            Parameter(initial.trunc_normal((max_length, dim))) if learned else Tensor(sincos1d(max_length, dim))
        )
        self.drop = Dropout(dropout)

    def forward(self, ids: Any, start: int = 0) -> Tensor:
        """`start` is how many tokens came before these. Raises ValueError if there are more than `max_length`."""
        ids = constant(ids)
        if ids.ndim != 2 or start + ids.shape[1] > self.max_length:
            raise ValueError(
                f"ids have shape {ids.shape} after {start} tokens; they must be (B, N), of at most {self.max_length} "
                "tokens in all"
            )
        x = self.words(ids)
        return self.drop(x * self.scale + self.pos_embed[start : start + ids.shape[1]].to(x.dtype))


def padding_mask(ids: Any) -> Any:
    """Return which tokens may be attended to, (B, 1, 1, N): all but the padding."""
    return (constant(ids) != PAD)[:, None, None, :]


class TextEncoder(Module):
    """Reads a text: token ids (B, N) -> (B, N, dim), or (B, dim) of the token `read`. Padding is not attended to."""

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        norm: str = "pre",
        dropout: float = 0.0,
        embedding: TextEmbedding | None = None,
        **options: Unpack[TextOptions],
    ) -> None:
        self.embedding = embedding or TextEmbedding(vocabulary, dim, dropout=dropout, **options)
        self.encoder = TransformerEncoder(dim, depth, heads, mlp_dim, norm, dropout)

    def forward(self, ids: Any, read: int | None = None) -> Tensor:
        return self.encoder(self.embedding(ids), padding_mask(ids), read=read)


class DecoderCache:
    """The keys and values of the tokens so far, with which a `TextDecoder` computes only the next token."""

    def __init__(self, blocks: Sequence[tuple[KeyValueCache, KeyValueCache]]) -> None:
        self.blocks, self.length = blocks, 0

    def select(self, rows: np.ndarray) -> None:
        """Keep these rows of the batch, in this order."""
        for block in self.blocks:
            for cache in block:
                cache.select(rows)


class TextDecoder(Module):
    """Writes a text about a context: token ids (B, N), context (B, S, context_dim) -> logits (B, N, vocabulary).

    The logits at token n are of the token after it, and depend on tokens 0 to n only. With `tied`, the embedding table
    is the last linear map too.
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        context_dim: int | None = None,
        norm: str = "pre",
        dropout: float = 0.0,
        tied: bool = True,
        **options: Unpack[TextOptions],
    ) -> None:
        check_flags("TextDecoder", tied=tied)
        self.embedding = TextEmbedding(vocabulary, dim, dropout=dropout, **options)
        self.decoder = TransformerDecoder(dim, depth, heads, mlp_dim, context_dim, norm, dropout)
        self.head = None if tied else Linear(dim, vocabulary)

    def new_cache(self) -> DecoderCache:
        """Return an empty cache of keys and values, with which texts are continued token by token."""
        return DecoderCache(self.decoder.new_caches())

    def forward(self, ids: Any, context: Tensor, context_mask: Any = None, cache: DecoderCache | None = None) -> Tensor:
        """With a cache, `ids` are the tokens that follow those of earlier calls."""
        start, caches = (0, None) if cache is None else (cache.length, cache.blocks)
        x = self.embedding(ids, start)
        if cache is not None:
            cache.length += x.shape[1]
        x = self.decoder(x, context, None, context_mask, caches)
        return F.linear(x, self.embedding.words.weight) if self.head is None else self.head(x)
