"""Resample position embeddings and patch embeddings, so that a model takes images or patches of another size.

A resizing is linear and separable: one matrix for the rows and one for the columns. Those here are the matrices of
PyTorch's `interpolate` with `align_corners=False`, which timm resamples weights with.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, ...]


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic kernel with a = -1/2 (Keys, Cubic convolution interpolation, 1981, equation 15)."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1 - np.abs(x))


# By name: the kernel, half its width in pixels, and whether it widens when a picture becomes smaller (antialias).
_FILTERS: dict[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float, bool]] = {
    "bicubic": (_cubic, 2.0, True),
    "bilinear": (_triangle, 1.0, False),
}


def resize_matrix(old: int, new: int, interpolation: str = "bicubic") -> NDArray[np.float64]:
    """Return the matrix (new, old) that resizes one axis of a picture: "bicubic" with antialias, "bilinear" without.

    Row i weights the pixels around the centre of pixel i, and sums to 1. Raises ValueError for another name.
    """
    if interpolation not in _FILTERS:
        raise ValueError(f"interpolation is {interpolation!r}; it must be one of {', '.join(_FILTERS)}")
    kernel, radius, antialias = _FILTERS[interpolation]
    scale = old / new
    stretch = max(scale, 1.0) if antialias else 1.0
    centre = scale * (np.arange(new) + 0.5)
    first = np.maximum((centre - radius * stretch + 0.5).astype(int), 0)
    last = np.minimum((centre + radius * stretch + 0.5).astype(int), old)
    pixel = np.arange(old)
    inside = (first[:, None] <= pixel) & (pixel < last[:, None])
    weights = np.where(inside, kernel((pixel + 0.5 - centre[:, None]) / stretch), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def resample_positions(
    positions: NDArray, old: Grid, new: Grid, prefix: int = 0, interpolation: str = "bicubic"
) -> NDArray[np.float32]:
    """Resample position embeddings (1, prefix + N, C) of a grid of patches `old` for the grid `new`.

    Those of the first `prefix` tokens stay. Equal to `resample_abs_pos_embed` of timm.
    """
    if old == new:
        return np.asarray(positions, np.float32)
    if len(old) != 2 or len(new) != 2:
        raise ValueError(f"positions of a grid {old} cannot be resampled for {new}; both must be (rows, columns)")
    if positions.shape[1] != prefix + old[0] * old[1]:
        raise ValueError(f"there are {positions.shape[1]} positions, not {prefix} and those of {old[0]} x {old[1]}")
    dim = positions.shape[-1]
    picture = np.asarray(positions[0, prefix:], np.float64).reshape(*old, dim)
    rows, columns = (resize_matrix(a, b, interpolation) for a, b in zip(old, new, strict=True))
    resized = np.einsum("ih,jw,hwc->ijc", rows, columns, picture, optimize=True).reshape(-1, dim)
    return np.concatenate([positions[0, :prefix], resized]).astype(np.float32)[None]


def resample_patches(weight: NDArray, new: Grid, interpolation: str = "bicubic") -> NDArray[np.float32]:
    """Resample the weights of a patch embedding (dim, C, P, Q) for patches of the size `new`.

    The new weights give for a resized patch what the old ones give for the patch itself, by least squares: they are
    multiplied with the pseudo-inverse of the resizing (Beyer et al., FlexiViT, 2023, section 3.4). Equal to
    `resample_patch_embed` of timm.
    """
    old = weight.shape[2:]
    if old == tuple(new):
        return np.asarray(weight, np.float32)
    rows, columns = (np.linalg.pinv(resize_matrix(a, b, interpolation)) for a, b in zip(old, new, strict=True))
    return np.einsum("dchw,hi,wj->dcij", np.asarray(weight, np.float64), rows, columns, optimize=True).astype(
        np.float32
    )
