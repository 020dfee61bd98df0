"""Rotary positions: queries and keys are turned by angles that grow with the place of their patch."""

import numpy as np

from .. import functional as F
from ..functional.tensors import Tensor, integers, is_sequence
from . import init
from .module import Module

_THETA = 100.0  # the longest wave, in patches, over 2 pi; 10,000 in texts


class RotaryPositions(Module):
    """Turn pairs of channels of x (B, H, N, D) by the angle column * f, in the first half of D, or row * f.

    Channels 2i and 2i + 1 of a half are a pair, and its frequency f is 100^(-4i / D): the scores of a query and a key
    then depend on the distance of their patches. (Su et al., RoFormer, 2021; on two axes, and with 100, Heo et al.,
    Rotary position embedding for vision transformer, 2024, equation 11 with one axis for each half.) The first
    `prefix` tokens have no place and are not turned.

    Raises ValueError if `grid` does not have two axes, or D is not a multiple of 4.
    """

    def __init__(self, grid: tuple[int, ...], head_dim: int, prefix: int = 0) -> None:
        init.check_sizes("RotaryPositions", head_dim=head_dim)
        init.check_sizes("RotaryPositions", 0, prefix=prefix)
        if len(sizes := integers("grid", grid)) != 2 or min(sizes) < 1 or not is_sequence(grid):
            raise ValueError(f"rope is True, which needs images, not patches in a grid of {grid}")
        if head_dim % 4:
            raise ValueError(f"rope is True, so dim / heads must be a multiple of 4, not {head_dim}")
        self.prefix, self.head_dim = prefix, head_dim
        self.set_grid(grid)

    def set_grid(self, grid: tuple[int, ...]) -> None:
        """Take patches in another grid."""
        frequencies = _THETA ** (-4 * np.arange(self.head_dim // 4) / self.head_dim)
        rows, columns = np.indices(grid).reshape(2, -1, 1)
        angles = np.concatenate([columns * frequencies, rows * frequencies], axis=1)
        angles = np.concatenate([np.zeros((self.prefix, angles.shape[1])), angles])
        self.cos, self.sin = (Tensor(f(angles).astype(np.float32)) for f in (np.cos, np.sin))  # (N, D / 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != len(self.cos.data):
            raise ValueError(f"rope is True for images of {len(self.cos.data)} tokens; x has {x.shape[2]}")
        a, b = F.unbind(x.reshape(*x.shape[:3], -1, 2), axis=-1)
        turned = F.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos], axis=-1)
        return turned.reshape(*x.shape)

    def describe(self) -> str:
        return f"tokens={len(self.cos.data)}, head_dim={self.head_dim}"
