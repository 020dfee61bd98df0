"""Image data sets by name: how they are found, downloaded and read."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..backend.threads import pool_of_threads
from ..errors import DataError
from .datasets import CHANNEL_STATISTICS, CLASSES, SPLITS, Dataset
from .digits import read_digits
from .download import fetch
from .folders import image_folder
from .formats import damaged, read_cifar, read_cifar_archive, read_idx
from .moving import chirps, motion
from .sources import DATASET_NAMES, GENERATED, SOURCES, check_name, find, find_part

_WITHOUT_DOWNLOAD = {"digits": read_digits, "motion": motion, "chirps": chirps}


def dataset_names() -> tuple[str, ...]:
    """Return the names of all data sets, without ``folder:PATH``."""
    return DATASET_NAMES


def described_datasets() -> list[tuple[str, str]]:
    """Return the name of each data set and the folder that holds it, or how it is obtained."""
    own = {"digits": "comes with the package"} | dict.fromkeys(GENERATED, "generated from a seed")
    return [
        (name, own.get(name) or str(find(name) or "not on this machine: tinyvit data fetch " + name))
        for name in DATASET_NAMES
    ]


def load_dataset(name: str, split: str, *, image_size: int | None = None) -> Dataset:
    """Load one split of a data set, which is downloaded first if it is not on disk.

    Parameters
    ----------
    name : str
        One of `dataset_names`, or ``folder:PATH`` for your own images (see `image_folder`).
    split : {"train", "test"}
        A folder also has "validation".
    image_size : int, optional
        Height and width in pixels, for a folder; the images of all other data sets have a fixed size.

    Raises
    ------
    DataError
        If the name is unknown, or the data is damaged, missing or cannot be downloaded.
    ValueError
        If there is no such split.
    """
    splits = (*SPLITS, *(("validation",) if name.startswith("folder:") else ()))
    if split not in splits:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(splits)}")
    if name.startswith("folder:"):
        return image_folder(name.removeprefix("folder:"), split, image_size=image_size)
    check_name(name)
    if name not in CLASSES:
        raise DataError(f"{name} has no classes of images: it is for recipes with another task.kind than classify")
    if name in _WITHOUT_DOWNLOAD:
        images, labels = _WITHOUT_DOWNLOAD[name](split)
    elif name.startswith("cifar"):
        images, labels = _read_cifar(name, find(name) or fetch(name), split)
    else:
        images, labels = _read_idx_pair(name, find(name) or fetch(name), split)
    if image_size not in (None, images.shape[-1]):
        raise DataError(f"image_size is {image_size}; the images of {name} have the size {images.shape[-1]}")
    return Dataset(name, split, images, labels, CLASSES[name], *CHANNEL_STATISTICS[name])


def _read_idx_pair(name: str, folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read images and labels in the format of MNIST."""
    prefix, count = {"train": ("train", 60_000), "test": ("t10k", 10_000)}[split]
    images_path, labels_path = (
        _part(folder, f"{prefix}-{part}") for part in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    images = read_idx(images_path, name, (count, 28, 28))
    labels = read_idx(labels_path, name, (count,))
    return images[:, None], _checked(labels, labels_path, name)


def _read_cifar(name: str, folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read CIFAR-10 or CIFAR-100 from its binary files, in parallel, or from the official archive."""
    (remote,) = SOURCES[name].files
    parts = [part for part in remote.parts if part.startswith("test") == (split == "test")]
    records = (50_000 if split == "train" else 10_000) // len(parts)
    label_bytes = 2 if name == "cifar-100" else 1
    paths = [path for part in parts if (path := find_part(folder, part))]
    if len(paths) == len(parts):
        with pool_of_threads() as pool:
            pieces = list(pool.map(lambda path: read_cifar(path, name, records, label_bytes), paths))
    else:
        paths = [folder / remote.name] * len(parts)
        pieces = read_cifar_archive(paths[0], name, parts, records, label_bytes)
    labels = [_checked(labels, path, name) for (_, labels), path in zip(pieces, paths, strict=True)]
    return np.concatenate([images for images, _ in pieces]), np.concatenate(labels)


def _part(folder: Path, part: str) -> Path:
    return find_part(folder, part) or folder / f"{part}.gz"


def _checked(labels: NDArray[np.uint8], path: Path, name: str) -> NDArray[np.int64]:
    if labels.max() >= len(CLASSES[name]):
        raise damaged(path, name, f"holds the label {labels.max()}, but has {len(CLASSES[name])} classes")
    return labels.astype(np.int64)
