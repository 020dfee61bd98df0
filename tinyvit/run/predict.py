"""Classes and probabilities of images: of files, arrays or Pillow images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import functional as F
from ..context import no_grad
from ..data import normalize
from ..errors import DataError
from ..nn import Module
from ..program.serve import served
from ..tasks import DataSpec

_AT_ONCE = 64  # images


@no_grad()
def classify(model: Module, data: DataSpec, images: Any, top: int = 1) -> list[list[tuple[str, float]]]:
    """Return for each image its `top` most probable classes with their probabilities, the most probable first.

    Parameters
    ----------
    model : Module, in eval mode
    data : DataSpec
        The facts about the data that the model was trained on.
    images : an image, or a sequence of images
        Each is the path of a file, an array or a Pillow image, see `tinyvit.data.images.pixels_of`; an array with one
        more axis is a sequence.
    top : int
        At most the number of classes.

    Raises
    ------
    DataError
        If an image cannot be read, or has another form than the model takes, or the model has no head.
    ValueError
        If `top` is not an integer from 1 to the number of classes.
    """
    if not data.classes:
        raise DataError("this model has no head, so it names no classes: use `tinyvit features`, or train one from it")
    if not isinstance(top, int | np.integer) or not 1 <= top <= len(data.classes):
        raise ValueError(f"top is {top!r}; it must be an integer from 1 to {len(data.classes)}, the number of classes")
    results = []
    for batch in _batches(data, images):
        probabilities = F.softmax(served(model)(normalize(np.stack(batch), data.mean, data.std))).numpy()
        for row in probabilities:
            order = np.argsort(-row, kind="stable")[:top]
            results.append([(data.classes[i], float(row[i])) for i in order])
    return results


def _batches(data: DataSpec, images: Any) -> Iterator[list[np.ndarray]]:
    is_one = isinstance(images, str | Path) or not isinstance(images, Sequence | np.ndarray)
    if isinstance(images, np.ndarray) and images.ndim < 4:
        is_one = images.ndim == 2 or images.shape[0] in (1, 3) or images.shape[-1] in (1, 2, 3, 4)
    every = [images] if is_one else images
    for start in range(0, len(every), _AT_ONCE):
        yield [data.read_image(image) for image in every[start : start + _AT_ONCE]]
