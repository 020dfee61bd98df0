"""The Transformer that turns one text into another (Vaswani et al., Attention is all you need, 2017)."""

from typing import Any, Unpack

from ..functional.tensors import Tensor
from ..nn import Module
from .text import TextDecoder, TextEncoder, TextOptions, padding_mask


class EncoderDecoder(Module):
    """A text to another: source (B, S) and the target so far (B, N) -> logits (B, N, vocabulary).

    Both are token ids of one vocabulary, filled up with `<pad>`; the target begins with `<start>`.

    Parameters
    ----------
    depth : blocks of the encoder, and of the decoder.
    norm : {"post", "pre"}
        LayerNorm(x + sublayer(x)), as first published, or x + sublayer(LayerNorm(x)).
    tied : one table is the embedding of source and target and the last linear map; else each has its own.
    options : see `TextOptions`.
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        norm: str = "post",
        dropout: float = 0.0,
        tied: bool = True,
        **options: Unpack[TextOptions],
    ) -> None:
        size = vocabulary, dim, depth, heads, mlp_dim
        self.decoder = TextDecoder(*size, norm=norm, dropout=dropout, tied=tied, **options)
        shared = self.decoder.embedding if tied else None
        self.encoder = TextEncoder(*size, norm=norm, dropout=dropout, embedding=shared, **options)

    def encode(self, source: Any) -> tuple[Tensor, Any]:
        """Return what the decoder attends to: the context (B, S, dim), and the mask of its padding."""
        return self.encoder(source), padding_mask(source)

    def forward(self, source: Any, target: Any) -> Tensor:
        return self.decoder(target, *self.encode(source))
