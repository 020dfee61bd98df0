"""Using a trained model: its accuracy on a data set, and the class of an image."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import functional as F
from ..context import no_grad
from ..data import Dataset, normalize, read_image
from ..errors import DataError
from ..nn import Module

if TYPE_CHECKING:
    from ..tasks import DataSpec
    from .folder import TrainedModel


def _nothing() -> None:
    pass


@no_grad()
def evaluate(
    model: Module, dataset: Dataset, batch_size: int, after_batch: Callable[[], None] = _nothing
) -> tuple[float, float, np.ndarray]:
    """Compare what `model` says of every image with its label.

    The model runs in eval mode, and is then put back into the mode it was in. `after_batch` may raise to break off.

    Returns
    -------
    loss : float
        Mean cross-entropy in nats, without label smoothing.
    accuracy : float
        Share of the images, from 0 to 1, whose most probable class is their label.
    confusion : int64 (classes, classes)
        How many images of each class (rows) were taken for each (columns).
    """
    was_training, loss = model.training, 0.0
    confusion = np.zeros((len(dataset.classes),) * 2, np.int64)
    model.eval()
    try:
        for start in range(0, len(dataset), batch_size):
            labels = dataset.labels[start : start + batch_size]
            logits = model(dataset.normalize(dataset.images[start : start + batch_size]))
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            np.add.at(confusion, (labels, logits.numpy().argmax(axis=1)), 1)
            after_batch()
    finally:
        model.train(was_training)
    return loss / len(dataset), float(confusion.trace() / len(dataset)), confusion


@no_grad()
def predict(trained: "TrainedModel", path: str | Path) -> tuple[str, float]:
    """Return the most probable class of an image file, by name, and its probability.

    The image is brought to the model's size and channels by the rules of `tinyvit.data.read_image`. Raises DataError.
    """
    _, model, data = trained
    pixels = read_for(data, path)
    probabilities = F.softmax(model(normalize(pixels[None], data.mean, data.std))).numpy()[0]
    best = int(probabilities.argmax())
    return data.classes[best], float(probabilities[best])


def read_for(data: "DataSpec", path: str | Path) -> np.ndarray:
    """Read an image file as the pixels that a model of such data takes, uint8 (C, H, W). Raises DataError."""
    if len(data.shape) != 3:
        raise DataError(f"{path} is one image; this model takes videos of {data.shape[0]} frames, from Python alone")
    channels, height, width = data.shape
    pixels = read_image(path, channels, height if height == width else None)
    if pixels.shape != data.shape:
        raise DataError(f"{path} has {pixels.shape[2]} x {pixels.shape[1]} pixels; this model takes {width} x {height}")
    return pixels
