"""Pre-training without labels: hidden patches of images and hidden words of texts are predicted from the rest."""

from typing import Any

import numpy as np

from .. import functional as F
from ..data.tokenizer import CLS, MASK, PAD, SPECIAL, START
from ..functional.tensors import Tensor
from ..nn import LayerNorm, Linear, Module, Parameter, TransformerDecoder, TransformerEncoder
from ..nn import init as initial
from ..nn.patches import sincos1d
from .text import TextEncoder, padding_mask
from .vit import ViT

IGNORED = -100  # the label of a token that the loss leaves out


def choose_patches(count: int, patches: int, rng: np.random.Generator) -> np.ndarray:
    """For each of `count` images, draw the order of its patches: (count, patches) int64.

    The first `visible_patches(patches, share)` of a row are seen, the others hidden.
    """
    return np.argsort(rng.random((count, patches)), axis=1)


def visible_patches(patches: int, share: float) -> int:
    """Return how many of the patches are seen when `share` of them is hidden; at least one, and not all."""
    return min(max(1, round(patches * (1 - share))), patches - 1)


def hide_tokens(
    ids: np.ndarray, vocabulary: int, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Hide tokens of texts (B, N): return the ids to read, and the labels, `IGNORED` where none is predicted.

    Each token is selected with probability `share`; it is read as `<mask>` in 80 % of these cases, as a random one in
    10 %, and as itself in 10 % (Devlin et al., BERT, 2019). Special tokens stay. At least one token is selected if
    there is one that is not special, so that a small share does not leave a batch without a loss.
    """
    drawn = np.where(np.isin(ids, [PAD, START, CLS]), np.inf, rng.random(ids.shape))
    asked = (drawn < share) | ((drawn == drawn.min(initial=np.inf)) & np.isfinite(drawn))
    how = rng.random(ids.shape)
    others = rng.integers(len(SPECIAL), vocabulary, ids.shape)
    read = np.where(asked & (how < 0.8), MASK, np.where(asked & (how >= 0.9), others, ids))
    return read, np.where(asked, ids, IGNORED)


class MaskedModel(Module):
    """Predicts hidden patches and hidden tokens from those that are seen.

    The image encoder sees the visible patches only; a light decoder gets its features, and a learned token for each
    hidden patch, all with their positions (He et al., Masked autoencoders are scalable vision learners, 2022). The text
    encoder sees all tokens, some of them `<mask>`. With both, the text attends to the visible patches of its image.

    Parameters
    ----------
    vision : ViT with num_classes=0, or None
    text, vocabulary : TextEncoder and the number of different tokens, or None and 0
    dim, heads : of the encoders, and of all that is built on them.
    decoder_dim, decoder_depth : of the light decoder of images.
    """

    def __init__(
        self,
        vision: ViT | None,
        text: TextEncoder | None,
        dim: int,
        heads: int,
        vocabulary: int = 0,
        decoder_dim: int | None = None,
        decoder_depth: int = 1,
    ) -> None:
        if vision is None and text is None:
            raise ValueError("vision and text are both None; at least one must be there to learn something")
        self.vision, self.text = vision, text
        if vision is not None:
            if vision.prefix:
                raise ValueError(
                    f"vision has {vision.prefix} tokens before its patches; it must have none, so no register_tokens, "
                    "no class_token and no pool='cls'"
                )
            if vision.needs_all_tokens:
                raise ValueError(
                    "vision needs all tokens of an image, but sees the visible patches only; leave mlp_layer at 'mlp' "
                    "and rope at False"
                )
            initial.check_sizes("MaskedModel", dim=dim)
            initial.check_optional_sizes("MaskedModel", decoder_dim=decoder_dim)
            initial.check_sizes("MaskedModel", 0, decoder_depth=decoder_depth)
            width, patch = decoder_dim or dim // 2, vision.patch_embed.patch_size
            tokens = int(np.prod(vision.patch_embed.grid))
            self.to_decoder = Linear(dim, width)
            self.hidden = Parameter(initial.trunc_normal((1, 1, width)))
            self.positions = Tensor(sincos1d(tokens, width)[None])
            self.decoder = TransformerEncoder(width, decoder_depth, heads)
            self.to_pixels = Linear(width, vision.patch_embed.in_channels * int(np.prod(patch)))
        if text is not None:
            initial.check_sizes("MaskedModel", dim=dim, vocabulary=vocabulary)
            self.look = TransformerDecoder(dim, 1, heads, causal=False) if vision is not None else None
            self.norm, self.to_words = LayerNorm(dim), Linear(dim, vocabulary)

    def forward(self, images: Any, order: Any, visible: int, ids: Any) -> tuple[Tensor | None, Tensor | None]:
        """Predict what is hidden.

        Parameters
        ----------
        images, order, visible : see `choose_patches`; unused without `vision`.
        ids : (B, N) token ids to be read; unused without `text`.

        Returns
        -------
        pixels : (B, hidden patches, pixels of a patch), in the order of `order`, or None
        logits : (B, N, vocabulary), or None
        """
        pixels = logits = features = None
        if self.vision is not None:
            features = self.vision.encode(F.take_rows(self.vision.embed(images), order[:, :visible]))
            x = self.to_decoder(features)
            hidden = self.hidden.broadcast_to(x.shape[0], order.shape[1] - visible, x.shape[2])
            x = F.concatenate([x, hidden], axis=1) + self.positions.to(x.dtype)[0][order]
            pixels = self.to_pixels(self.decoder(x)[:, visible:])
        if self.text is not None:
            x = self.text(ids)
            if self.look is not None:
                x = self.look(x, features, padding_mask(ids))
            logits = self.to_words(self.norm(x))
        return pixels, logits

    def hidden_pixels(self, images: Any, order: Any, visible: int) -> Any:
        """Return what `forward` should predict of the hidden patches, each normalized by its mean and deviation."""
        vision: Any = self.vision
        patches = F.patches(Tensor(images), vision.patch_embed.patch_size)
        hidden = F.take_rows(patches, order[:, visible:]).data
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-2)
        return centred / deviation.astype(hidden.dtype)
