"""Geometric changes of images (B, C, H, W), each with its own amount; areas that come into view are 0."""

import numpy as np
from numpy.typing import NDArray


def transform(images: NDArray, matrices: NDArray[np.float64], offsets: NDArray[np.float64]) -> NDArray:
    """Take each pixel from the place ``matrix (y, x) + offset`` of its image, by bilinear sampling.

    Places are counted from the centre of the image in pixels; matrices (B, 2, 2) and offsets (B, 2) are for (y, x). A
    result of integer dtype is rounded to the nearest.
    """
    source_y, source_x = sources(matrices, offsets, *images.shape[2:])
    framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return sample(framed, source_y, source_x)


def sources(
    matrices: NDArray[np.float64], offsets: NDArray[np.float64], height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the place (B, H, W) from which `transform` takes each pixel of the result, as y and x.

    It is counted in an image with a frame of zeros, one pixel wide; places outside are clipped onto the frame.
    """
    y = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    x = np.arange(width, dtype=np.float32) - (width - 1) / 2
    m = matrices.astype(np.float32)[..., None, None]
    o = offsets.astype(np.float32)[..., None, None]
    source_y = np.clip(m[:, 0, 0] * y + m[:, 0, 1] * x + o[:, 0] + (height + 1) / 2, 0, height + 1)
    source_x = np.clip(m[:, 1, 0] * y + m[:, 1, 1] * x + o[:, 1] + (width + 1) / 2, 0, width + 1)
    return source_y.astype(np.float32, copy=False), source_x.astype(np.float32, copy=False)


def sample(images: NDArray, source_y: NDArray[np.float32], source_x: NDArray[np.float32]) -> NDArray:
    """Return the values between pixels at rows and columns (B, H', W'), which must lie inside; (B, C, H', W')."""
    batch, channels, height, width = images.shape
    top = np.minimum(source_y.astype(np.int32), height - 2)
    left = np.minimum(source_x.astype(np.int32), width - 2)
    down, right = (source_y - top)[..., None], (source_x - left)[..., None]
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).reshape(-1, channels)  # one look-up for all channels
    corner = np.arange(batch)[:, None, None] * (height * width) + top * width + left
    upper = pixels.take(corner, axis=0) * (1 - right) + pixels.take(corner + 1, axis=0) * right
    corner += width
    lower = pixels.take(corner, axis=0) * (1 - right) + pixels.take(corner + 1, axis=0) * right
    result = upper * (1 - down) + lower * down
    whole = np.issubdtype(images.dtype, np.integer)
    return np.ascontiguousarray((np.rint(result) if whole else result).astype(images.dtype).transpose(0, 3, 1, 2))


def resized_crops(images: NDArray, boxes: NDArray[np.float64]) -> NDArray:
    """Cut a box from each image and stretch it to the size of the image; boxes (B, 4) are top, left, height, width.

    The boxes are in pixels, need not be whole, and lie inside the images.
    """
    height, width = images.shape[2:]
    top, left, tall, wide = boxes.astype(np.float32)[:, :, None].transpose(1, 0, 2)
    y = top + (np.arange(height, dtype=np.float32) + 0.5) * tall / height - 0.5
    x = left + (np.arange(width, dtype=np.float32) + 0.5) * wide / width - 0.5
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    shape = len(images), height, width
    return sample(images, np.broadcast_to(y[:, :, None], shape), np.broadcast_to(x[:, None, :], shape))


def draw_boxes(count: int, height: int, width: int, least: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw boxes inside an image, (count, 4) top, left, height, width: of `least` to all of its area.

    The ratio of their sides is between 3/4 and 4/3, as in Inception (Szegedy et al. 2015, arXiv:1409.4842), as far as
    the image is large enough.
    """
    area = rng.uniform(least, 1, count) * height * width
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), count))
    tall, wide = np.minimum(np.sqrt(area * ratio), height), np.minimum(np.sqrt(area / ratio), width)
    top, left = rng.random(count) * (height - tall), rng.random(count) * (width - wide)
    return np.stack([top, left, tall, wide], axis=1)


def erase(images: NDArray, share: float, rng: np.random.Generator) -> NDArray:
    """Fill a rectangle of some images with noise: random erasing (Zhong et al. 2017, arXiv:1708.04896).

    `share` of the images lose 2 to 33 % of their area, in rectangles whose sides have a ratio from 0.3 to 3.3.
    """
    batch, _, height, width = images.shape
    erased = np.less(rng.random(batch), share)
    area = rng.uniform(0.02, 0.33, batch) * height * width
    ratio = np.exp(rng.uniform(np.log(0.3), np.log(3.3), batch))
    tall = np.clip(np.rint(np.sqrt(area * ratio)), 1, height)
    wide = np.clip(np.rint(np.sqrt(area / ratio)), 1, width)
    top = np.floor(rng.random(batch) * (height - tall + 1))
    left = np.floor(rng.random(batch) * (width - wide + 1))
    noise = rng.integers(0, 256, images.shape, np.uint8)
    rows, columns = np.arange(height), np.arange(width)
    inside_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None]) & erased[:, None]
    inside_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    covered = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return np.where(covered, noise.astype(images.dtype), images)
