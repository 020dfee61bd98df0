"""Mixing the images of a batch and their labels: mixup and cutmix."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from .datasets import Batch


@dataclass(frozen=True)
class Mix:
    """Mix each image of a batch with its partner, the image at the same place from the end, and their labels alike.

    The share of the first image is drawn for each batch from Beta(a, a). With both, a batch has one or the other.

    Attributes
    ----------
    classes : the number of classes.
    mixup : a of mixup, which averages two images (Zhang et al. 2017, arXiv:1710.09412); 0 for none.
    cutmix : a of cutmix, which replaces a rectangle (Yun et al. 2019, arXiv:1905.04899); 0 for none.
    """

    classes: int
    mixup: float = 0.0
    cutmix: float = 0.0

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return the batch with mixed images, and as labels the probabilities of the classes, float32 (B, classes)."""
        assert batch.images is not None
        cuts = bool(self.cutmix) and (not self.mixup or rng.random() < 0.5)
        a = self.cutmix if cuts else self.mixup
        share = float(rng.beta(a, a))
        images, labels = batch.images, np.eye(self.classes, dtype=np.float32)[batch.labels]
        if cuts:
            height, width = images.shape[-2:]
            tall, wide = (round(side * np.sqrt(1 - share)) for side in (height, width))
            top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
            mixed = images.copy()
            place = (..., slice(top, top + tall), slice(left, left + wide))
            mixed[place] = images[::-1][place]
            share = 1 - tall * wide / (height * width)
        else:
            mixed = images * np.float32(share) + images[::-1] * np.float32(1 - share)
        labels = labels * np.float32(share) + labels[::-1] * np.float32(1 - share)
        return dataclasses.replace(batch, images=mixed, labels=labels)
