"""Dividing a data set: a part is held out, at random but with the share of every class, and the rest is trained on."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .datasets import Dataset, first_of_each
from .dense import BoxDataset, MaskDataset
from .texts import TextDataset

AnyData = Dataset | TextDataset | MaskDataset | BoxDataset


def hold_out(dataset: AnyData, amount: float, seed: int, name: str = "validation") -> tuple[AnyData, AnyData]:
    """Divide a data set into the samples to train on and those that are held out, which become the split `name`.

    Each class, or each answer, has its share in both parts, and one sample at least stays to train on. All samples
    about one image are on the same side.

    Parameters
    ----------
    dataset : Dataset, TextDataset, MaskDataset or BoxDataset
    amount : float
        The fraction of samples that are held out, if below 1, or else their number.
    seed : int

    Raises
    ------
    DataError
        If `amount` is neither, or leaves nothing to train on.
    """
    if isinstance(dataset, TextDataset) and dataset.shares_images:
        held_images = _chosen(np.zeros(len(dataset.images), np.int64), amount, seed, len(dataset))
        held = np.isin(dataset.image_of, np.flatnonzero(held_images))
    else:
        one_each = dataset.labels.ndim == 1
        groups = dataset.labels if one_each else getattr(dataset, "kind_of", np.zeros(len(dataset), np.int64))
        held = _chosen(np.asarray(groups, np.int64), amount, seed, len(dataset))
    rest, part = dataset.chosen(np.flatnonzero(~held)), dataset.chosen(np.flatnonzero(held))
    return rest, replace(part, split=name)


def _chosen(groups: NDArray[np.int64], amount: float, seed: int, samples: int) -> NDArray[np.bool_]:
    """Return which elements of `groups` (n,) are held out. `amount` counts `samples`, one or more an element."""
    count = amount if amount < 1 else amount / samples
    wanted = max(1, round(count * len(groups)))
    if amount >= 1 and amount != int(amount):
        raise DataError(f"{amount} is neither a fraction below 1 nor a whole number of samples")
    order = np.random.default_rng((seed, 2)).permutation(len(groups))
    held = first_of_each(groups, order, wanted)
    if not held.any():
        raise DataError(f"of {samples:,} samples none can be held out without leaving a class without any")
    if amount >= 1 and held.sum() < wanted:
        raise DataError(f"of {samples:,} samples, {int(amount):,} cannot be held out; take fewer")
    return held
