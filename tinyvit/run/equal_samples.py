"""Warnings about images and texts of the user's own that are equal: in two splits, or with different labels."""

import shlex
from collections.abc import Hashable, Sequence
from typing import Any

from ..backend.words import counted
from ..data import Dataset, TextDataset
from ..data.datasets import digests_of, equal_images
from ..data.image_files import listed
from ..errors import log
from ..tasks.spec import AnyDataset


def warn_of_equal_images(train: AnyDataset, test: AnyDataset) -> None:
    """Warn if files of the test split hold images to learn from: then the accuracy promises too much."""
    if train.files and test.files:
        pairs = [f"{test.files[j]} = {train.files[i]}" for i, j in equal_images(train.images, test.images)]
        if pairs:
            log.warning(
                "%s: %s of %s test images are train images too, so the accuracy will be too high: %s",
                *(train.name, f"{len(pairs):,}", f"{len(test.files):,}", listed(pairs)),
            )


def warn_of_contradictions(kind: str, splits: Sequence[AnyDataset | None]) -> None:
    """Warn of equal samples with different labels, in all splits of a run of a kind of task that learns from labels.

    Images are compared as the model sees them, and questions with their images.
    """
    by_sample: dict[Hashable, dict[int, str]] = {}
    samples: dict[Hashable, int] = {}
    name, classes = "", ()  # type: str, tuple[str, ...]
    for data in splits:
        if data is None or kind not in ("classify", "vqa") or not data.files or data.labels.ndim != 1:
            return
        name, classes = data.name, data.classes
        for sample, label, file in _labelled(data):
            by_sample.setdefault(sample, {}).setdefault(label, file)
            samples[sample] = samples.get(sample, 0) + 1
    found = {sample: labels for sample, labels in by_sample.items() if len(labels) > 1}
    if found:
        first = " = ".join(f"{file} ({classes[label]})" for label, file in next(iter(found.values())).items())
        what = "equal images" if kind == "classify" else "equal questions about equal images"
        total = sum(samples[sample] for sample in found)
        log.warning(
            "%s: %s have different labels, in %s, such as %s; no model can be right about all of them; "
            "`tinyvit data check %s` lists them",
            *(name, f"{total:,} {what}", counted(len(found), "groups"), first, shlex.quote(name.partition(":")[2])),
        )


def _labelled(data: Any) -> list[tuple[Hashable, int, str]]:
    """Return for each sample what it is, its label, and its file."""
    keys = digests_of(data.images)
    if isinstance(data, TextDataset):
        texts = [tuple(row[row != 0].tolist()) for row in data.texts]
        rows = zip(data.image_of.tolist(), texts, data.labels.tolist(), strict=True)
        return [((keys[image], text), label, data.files[image]) for image, text, label in rows]
    if isinstance(data, Dataset):
        return list(zip(keys, data.labels.tolist(), data.files, strict=True))
    return []
