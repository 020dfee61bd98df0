"""The Transformer that turns one text into another (Vaswani et al., Attention is all you need, 2017)."""

from typing import Any

from ..engine import Tensor
from ..nn import Module
from .text import TextDecoder, TextEncoder, words_mask


class EncoderDecoder(Module):
    """A text to another: source (B, S) and the words of the target so far (B, N) -> logits (B, N, vocabulary).

    Both are numbers of words of one vocabulary, filled up with `<pad>`; the target begins with `<start>`.

    Parameters
    ----------
    depth : blocks of the encoder, and of the decoder.
    max_length : words that a text may have.
    norm : {"post", "pre"}
        LayerNorm(x + sublayer(x)), as first published, or x + sublayer(LayerNorm(x)).
    positions : {"sincos", "learned"}
    tied : one table is the embedding of source and target and the last linear map; else each has its own.
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        max_length: int = 64,
        norm: str = "post",
        positions: str = "sincos",
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        options: dict[str, Any] = {
            "max_length": max_length, "norm": norm, "positions": positions, "dropout": dropout
        }  # fmt: skip
        self.decoder = TextDecoder(vocabulary, dim, depth, heads, mlp_dim, tied=tied, **options)
        shared = self.decoder.embedding if tied else None
        self.encoder = TextEncoder(vocabulary, dim, depth, heads, mlp_dim, embedding=shared, **options)

    def encode(self, source: Any) -> tuple[Tensor, Any]:
        """What the decoder looks at: the context (B, S, dim), and which of it may be looked at."""
        return self.encoder(source), words_mask(source)

    def forward(self, source: Any, target: Any) -> Tensor:
        return self.decoder(target, *self.encode(source))
