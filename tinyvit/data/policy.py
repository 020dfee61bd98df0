"""RandAugment and TrivialAugment: each image is changed by operations that are drawn at random from one list.

"rand" makes several operations in a row, all of one strength (Cubuk et al. 2020, RandAugment, arXiv:1909.13719);
"trivial" makes one, of a strength drawn for each image, with wider ranges (Mueller and Hutter 2021, TrivialAugment,
arXiv:2103.10158). A strength from 0 to 1 goes from no change to the end of the range of the operation. Both directions
are equally likely. Shifts are shares of the side, so that they mean the same for small images.
"""

import numpy as np
from numpy.typing import NDArray

from . import colour
from .geometry import transform

NAMES = (
    *("identity", "shear_x", "shear_y", "move_x", "move_y", "rotate", "brightness", "saturation", "contrast"),
    *("sharpness", "posterize", "solarize", "stretch", "equalize"),
)
_ENDS = {  # of the ranges: shear, shift, degrees, change of factors, bits that are removed
    "rand": (0.3, 0.45, 30.0, 0.9, 4.0),
    "trivial": (0.99, 0.45, 135.0, 0.99, 6.0),
}
_FACTORS = {
    "brightness": colour.change_brightness,
    "saturation": colour.change_saturation,
    "contrast": colour.change_contrast,
    "sharpness": colour.sharpen,
}


def apply_policy(
    images: NDArray[np.uint8], kind: str, layers: int, strength: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Change images uint8 (B, C, H, W) by the policy `kind`, "rand" or "trivial"; the given ones are not modified."""
    batch = len(images)
    for _ in range(layers if kind == "rand" else 1):
        chosen = rng.integers(len(NAMES), size=batch)
        signs = np.where(rng.random(batch) < 0.5, -1.0, 1.0)
        drawn = rng.random(batch)
        strengths = np.full(batch, strength) if kind == "rand" else drawn
        images = change(images, chosen, strengths, signs, _ENDS[kind])
    return images


def change(
    images: NDArray[np.uint8],
    chosen: NDArray[np.int64],
    strengths: NDArray[np.float64],
    signs: NDArray[np.float64],
    ends: tuple[float, ...] = _ENDS["rand"],
) -> NDArray[np.uint8]:
    """Change each image by the operation `NAMES[chosen]` (B,), of strengths (B,) from 0 to 1 and signs (B,) -1 or 1."""
    result = images.copy()
    shear, move, degrees, factor, bits = ends
    geometric = (chosen >= NAMES.index("shear_x")) & (chosen <= NAMES.index("rotate"))
    if geometric.any():
        amount = strengths * signs
        of = {name: np.where(chosen == NAMES.index(name), amount, 0.0)[geometric] for name in NAMES[1:6]}
        height, width = images.shape[2:]
        angle = np.deg2rad(degrees * of["rotate"])
        matrices = np.empty((int(geometric.sum()), 2, 2))
        matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(angle)
        matrices[:, 0, 1] = np.sin(angle) + shear * of["shear_y"]
        matrices[:, 1, 0] = -np.sin(angle) + shear * of["shear_x"]
        offsets = np.stack([np.rint(move * of["move_y"] * height), np.rint(move * of["move_x"] * width)], axis=1)
        result[geometric] = transform(images[geometric], matrices, offsets)
    for number, name in enumerate(NAMES[6:], 6):
        these = np.flatnonzero(chosen == number)
        if not len(these):
            continue
        some, s = images[these], strengths[these]
        if name in _FACTORS:
            result[these] = _FACTORS[name](some, 1 + factor * s * signs[these])
        elif name == "posterize":
            result[these] = colour.posterize(some, 8 - bits * s)
        elif name == "solarize":
            result[these] = colour.solarize(some, 256 * (1 - s))
        else:
            result[these] = colour.stretch(some) if name == "stretch" else colour.equalize(some)
    return result
