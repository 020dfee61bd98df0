"""Attention rollout: how much each token of the last block depends on each token of the first."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..functional.tensors import Tensor, no_grad
from ..nn import keep_attention
from .vit import ViT


@no_grad()
def attention_rollout(model: ViT, images: Any, residual: float = 0.5) -> NDArray[np.float64]:
    """Multiply the attention of all blocks, each averaged over its heads: (B, C, H, W) -> (B, N, N).

    Row n has the share of each input token in token n of the last block; it sums to 1. A share `residual` of each token
    passes a block unchanged. With a class token, `result[:, 0, model.prefix :]` is a map of the patches. (Abnar and
    Zuidema, Quantifying attention flow in transformers, 2020, equation 1.)
    """
    if not 0 <= residual <= 1:
        raise ValueError(f"residual is {residual}; it must be from 0 to 1")
    with keep_attention(model) as kept:
        model.forward_features(images)
    rolled: Any = None
    for name, maps in kept.items():
        if maps and name.startswith("blocks."):
            mean = Tensor(maps[-1]).numpy().astype(np.float64).mean(axis=1)
            step = residual * np.eye(mean.shape[-1]) + (1 - residual) * mean
            rolled = step if rolled is None else step @ rolled
    if rolled is None:
        raise ValueError("the model has no blocks with attention")
    return rolled
