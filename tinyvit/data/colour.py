"""Changes of brightness and colour of images uint8 (B, C, H, W) with 1 (grey) or 3 (RGB) channels.

Each takes one strength for each image, (B,), and returns new images. A factor of 1 changes nothing.
"""

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Strengths = NDArray[np.float64]
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601


def _mixed(images: Images, other: NDArray[np.float32], factors: Strengths) -> Images:
    """Return ``other + factor (images - other)``, rounded and clipped: beyond 1 the difference grows."""
    f = factors.astype(np.float32)[:, None, None, None]
    mixed = images * f
    mixed += other * (1 - f)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def grey_of(images: Images) -> NDArray[np.float32]:
    """Return the brightness of each pixel, float32 (B, 1, H, W)."""
    if images.shape[1] != 3:
        return images.astype(np.float32).mean(axis=1, keepdims=True)
    return np.einsum("bchw,c->bhw", images.astype(np.float32), _LUMA)[:, None]


def change_brightness(images: Images, factors: Strengths) -> Images:
    """Multiply all values."""
    return _mixed(images, np.zeros((1, 1, 1, 1), np.float32), factors)


def change_contrast(images: Images, factors: Strengths) -> Images:
    """Move values away from the mean brightness of their image, or towards it."""
    return _mixed(images, np.rint(grey_of(images).mean(axis=(1, 2, 3), keepdims=True)), factors)


def change_saturation(images: Images, factors: Strengths) -> Images:
    """Move colours away from grey, or towards it; grey images stay as they are."""
    return _mixed(images, grey_of(images), factors) if images.shape[1] == 3 else images.copy()


def sharpen(images: Images, factors: Strengths) -> Images:
    """Move values away from a smoothed copy, or towards it; the border stays as it is."""
    x = images.astype(np.float32)
    smooth = x.copy()
    inner = sum(x[..., i : i + x.shape[2] - 2, j : j + x.shape[3] - 2] for i in range(3) for j in range(3))
    smooth[..., 1:-1, 1:-1] = (inner + 4 * x[..., 1:-1, 1:-1]) / 13
    return _mixed(images, smooth, factors)


def posterize(images: Images, bits: Strengths) -> Images:
    """Keep the first bits of each value; `bits` from 1 to 8 are rounded."""
    masks = (0xFF00 >> np.rint(bits).astype(np.int64)) & 0xFF
    return images & masks.astype(np.uint8)[:, None, None, None]


def solarize(images: Images, thresholds: Strengths) -> Images:
    """Invert the values that reach a threshold from 0 to 256."""
    return np.where(images >= thresholds[:, None, None, None], 255 - images, images)


def stretch(images: Images) -> Images:
    """Stretch the values of each channel to 0..255; channels of one value stay as they are (autocontrast)."""
    low = images.min(axis=(2, 3), keepdims=True).astype(np.float32)
    high = images.max(axis=(2, 3), keepdims=True).astype(np.float32)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    return np.clip(np.rint((images - np.where(high > low, low, 0)) * scale), 0, 255).astype(np.uint8)


def equalize(images: Images) -> Images:
    """Spread the values of each channel so that all are about equally frequent, by Pillow's rule."""
    result = np.empty_like(images)
    planes, targets = images.reshape(-1, *images.shape[2:]), result.reshape(-1, *images.shape[2:])
    for plane, target in zip(planes, targets, strict=True):
        counts = np.bincount(plane.reshape(-1), minlength=256)
        step = (plane.size - counts[np.flatnonzero(counts)[-1]]) // 255
        before = np.cumsum(counts) - counts
        table = np.minimum((before + step // 2) // step, 255) if step else np.arange(256)
        target[...] = table.astype(np.uint8)[plane]
    return result


def jitter_colours(images: Images, strength: float, rng: np.random.Generator) -> Images:
    """Change brightness, contrast and saturation, each by a factor between 1 - strength and 1 + strength."""
    for change in (change_brightness, change_contrast, change_saturation):
        images = change(images, rng.uniform(1 - strength, 1 + strength, len(images)))
    return images
