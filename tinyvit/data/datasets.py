"""Image data sets by name: their classes and statistics, and how they are loaded into memory."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, log
from .digits import read_digits
from .download import fetch
from .formats import damaged, read_cifar, read_cifar_archive, read_idx
from .image_files import (
    IMAGE_SUFFIXES,
    class_folders,
    files_beside,
    find_images,
    listed,
    listed_files,
    read_files,
    warn_of_left_out,
)
from .images import read_image
from .moving import MOTIONS, SWEEPS, chirps, motion
from .sources import DATASET_NAMES, SOURCES, check_name, find, find_part

SPLITS = ("train", "test")

# Mean and standard deviation of each channel over the train split, of pixels in 0..1: computed for the digits and the
# generated data, and else the usual published numbers. Those of a folder map black to -1 and white to 1.
CHANNEL_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.3050,), (0.3764,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "motion": ((0.12,), (0.15,)),
    "chirps": ((0.4,), (0.2,)),
    "folder": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
# Data sets whose labels tell left from right, so that images must not be mirrored.
HANDED = ("motion", "chirps", "scenes-questions")
_WITHOUT_DOWNLOAD = {"digits": read_digits, "motion": motion, "chirps": chirps}
_DIGITS = tuple("0123456789")
_CIFAR_100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
    telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CLASSES: dict[str, tuple[str, ...]] = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar-10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar-100": tuple(_CIFAR_100.split()),
    "motion": MOTIONS,
    "chirps": SWEEPS,
}


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of samples.

    Attributes
    ----------
    images : float32 (B, C, H, W), optional
        Normalized, C-contiguous; (B, T, C, H, W) of videos; None if the data set has no images.
    labels : int64 (B,), or token ids (B, M) if the labels are texts
    index : int
        The number of the batch in the epoch, from 0.
    texts : int64 (B, N), optional
        Token ids, padded with `<pad>`; None if the data set has no texts.
    image_of : int64 (B,), optional
        The index into `images` of each sample's image, if samples share images; None if each has its own, in order.
    drawn : tuple of arrays
        The random numbers that the loss of a task needs, see `tinyvit.tasks.Task.with_draws`.
    """

    images: NDArray[np.float32] | None
    labels: NDArray[np.int64]
    index: int
    texts: NDArray[np.int64] | None = None
    image_of: NDArray[np.int64] | None = None
    drawn: tuple[Any, ...] = ()

    @property
    def image_of_each(self) -> NDArray[np.float32] | None:
        """The image of each sample (B, C, H, W), repeated where samples share it; None if there are no images."""
        return self.images if self.images is None or self.image_of is None else self.images[self.image_of]


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set, in memory.

    Attributes
    ----------
    name, split : str
    images : uint8 (n, C, H, W), or (n, T, C, H, W) of videos
    labels : int64 (n,)
        Indices into `classes`.
    classes : tuple of str
    mean, std : tuple of float
        Of each channel, for pixels in 0..1; the same numbers for both splits.
    files : tuple of str
        The file of each image, if each has its own; else empty.
    """

    name: str
    split: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim not in (4, 5):
            raise ValueError(
                f"images are {self.images.dtype} {self.images.shape}, not uint8 (n, C, H, W) or (n, T, C, H, W)"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels are {self.labels.dtype} {self.labels.shape}, not int64 ({len(self.images)},)")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(
                f"labels go from {self.labels.min()} to {self.labels.max()}, of {len(self.classes)} classes"
            )
        if not len(self.mean) == len(self.std) == self.images.shape[-3]:
            raise ValueError(
                f"mean {self.mean} and std {self.std} do not have one number for each of the "
                f"{self.images.shape[-3]} channels"
            )

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> "Dataset":
        """Return the data set reduced to its first `count` images."""
        return self.chosen(np.arange(min(count, len(self))))

    def chosen(self, indices: NDArray[np.int64]) -> "Dataset":
        """Return the data set reduced to the images with these indices."""
        files = tuple(self.files[i] for i in indices) if self.files else ()
        return replace(self, images=self.images[indices], labels=self.labels[indices], files=files)

    def sample(self, count: int, seed: int = 0) -> "Dataset":
        """Return a random sample of `count` images that has some of every class, in the order of the data set.

        Raises DataError if `count` is less than the number of classes.
        """
        there = len(np.unique(self.labels))
        if count < min(there, len(self)):
            raise DataError(f"{count} images of {there} classes would leave classes without images; take more")
        return self.chosen(sample_indices(self.labels, count, seed))

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the indices of all samples in random order."""
        return rng.permutation(len(self))

    def batch(
        self, chosen: NDArray[np.int64], index: int = 0, augment: Callable[[NDArray], NDArray] | None = None
    ) -> Batch:
        """Return batch number `index`, of the images with the indices `chosen`, changed by `augment`."""
        images = self.images[chosen]
        return Batch(self.normalize(images if augment is None else augment(images)), self.labels[chosen], index)

    def fingerprint(self) -> str:
        """Return a checksum of all images and labels."""
        return checksum(self.images, self.labels)

    def with_equal_batches(self, size: int) -> "Dataset":
        """Return the data set with batches of `size` samples that all have the same shape, as a CUDA graph needs.

        Batches of images have it already.
        """
        return self

    def normalize(self, images: NDArray) -> NDArray[np.float32]:
        """Normalize images with the mean and std of this data set, see the function `normalize`."""
        return normalize(images, self.mean, self.std)


def checksum(*arrays: NDArray) -> str:
    """Return the SHA-256 of the contents of arrays, with their shapes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def equal_images(dataset: Dataset, other: Dataset) -> list[tuple[int, int]]:
    """Return the pairs of indices of equal images in `dataset` and in `other`, one for each of `other`."""
    place = {image.tobytes(): i for i, image in enumerate(dataset.images)}
    return [(place[key], i) for i, image in enumerate(other.images) if (key := image.tobytes()) in place]


def sample_indices(groups: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the sorted indices of a random sample of `count` elements, or of all if there are fewer.

    `groups` (n,) are small integers. Each group has its share of the sample, and an element at least if `count` allows.
    """
    if count >= len(groups):
        return np.arange(len(groups))
    order = np.random.default_rng((seed, 1)).permutation(len(groups))
    sizes = np.bincount(groups)
    rank = np.empty(len(groups), np.int64)  # of each element within its group, in random order
    by_group = order[np.argsort(groups[order], kind="stable")]
    rank[by_group] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # The first of each group come first, then the others in the order in which they use up the share of their group.
    place = np.where(rank == 0, -1.0, (rank + 0.5) / sizes[groups])
    return np.sort(order[np.argsort(place[order], kind="stable")[:count]])


def normalize(images: NDArray, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Return ``(images / 255 - mean) / std``, the input of a model, as a new float32 array.

    images (..., C, H, W) has values in 0..255; mean and std have one number for each channel, for 0..1.
    """
    deviation = np.array(std, np.float64).reshape(-1, 1, 1)
    scale = (1 / (255 * deviation)).astype(np.float32)
    offset = (np.array(mean, np.float64).reshape(-1, 1, 1) / deviation).astype(np.float32)
    normalized = np.multiply(images, scale, dtype=np.float32, casting="same_kind")
    normalized -= offset
    return normalized


def dataset_names() -> tuple[str, ...]:
    """Return the names of all data sets, without ``folder:PATH``."""
    return DATASET_NAMES


def load_dataset(name: str, split: str, *, image_size: int | None = None) -> Dataset:
    """Load one split of a data set, which is downloaded first if it is not on disk.

    Parameters
    ----------
    name : str
        One of `dataset_names`, or ``folder:PATH`` for your own images (see `image_folder`).
    split : {"train", "test"}
    image_size : int, optional
        Height and width in pixels, for a folder; the images of all other data sets have a fixed size.

    Raises
    ------
    DataError
        If the name is unknown, or the data is damaged, missing or cannot be downloaded.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; a data set has the splits 'train' and 'test'")
    if name.startswith("folder:"):
        return image_folder(name.removeprefix("folder:"), split, image_size=image_size)
    check_name(name)
    if name not in CLASSES:
        raise DataError(f"{name} has texts, not classes: it is for recipes with another task.kind than classify")
    if name in _WITHOUT_DOWNLOAD:
        images, labels = _WITHOUT_DOWNLOAD[name](split)
    elif name.startswith("cifar"):
        images, labels = _read_cifar(name, find(name) or fetch(name), split)
    else:
        images, labels = _read_idx_pair(name, find(name) or fetch(name), split)
    if image_size not in (None, images.shape[-1]):
        raise DataError(f"image_size is {image_size}; the images of {name} have the size {images.shape[-1]}")
    return Dataset(name, split, images, labels, CLASSES[name], *CHANNEL_STATISTICS[name])


def image_folder(path: str | Path, split: str, *, image_size: int | None = None) -> Dataset:
    """Load a data set of image files, ``PATH/<split>/<class>/<file>``.

    The classes are the folders of ``PATH/train``, in alphabetical order; a class may have folders within it. Every
    image becomes RGB of one size, by the rules of `tinyvit.data.images`. Files that are hidden, that are not images, or
    that cannot be read are left out; a warning counts and names them.

    Parameters
    ----------
    path : str or Path
    split : {"train", "test"}
    image_size : int, optional
        Height and width in pixels; None if all files have the same size.

    Raises
    ------
    DataError
        If a folder is missing, if it has no image that can be read, if the test split has a class that the train split
        lacks, or if the sizes differ.
    """
    root = Path(path)
    classes = tuple(class_folders(root / "train"))
    files: list[Path] = []
    labels: list[int] = []
    arrays: list[NDArray[np.uint8]] = []
    left_out = files_beside(root / split)
    folders = class_folders(root / split)
    if unknown := [name for name in folders if name not in classes]:
        others = f", as are {listed(unknown[1:])}" if unknown[1:] else ""
        raise DataError(
            f"{folders[unknown[0]]} is a class that {root / 'train'} lacks{others}; it has {listed(classes, 20)}"
        )
    for name, folder in folders.items():
        found = find_images(folder)
        good, pixels, broken = read_files(found.images, lambda file: read_image(file, 3, image_size))
        if not good:
            rest = [*broken, *found.left_out]
            way = f"of its files none can be used: {listed_files(rest)}" if rest else "add some or remove it"
            raise DataError(f"{folder} holds no images ({' '.join(IMAGE_SUFFIXES)}); {way}")
        files, arrays, labels = files + good, arrays + pixels, labels + [classes.index(name)] * len(good)
        left_out += [*broken, *found.left_out]
    for file, array in zip(files, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"{file} has the shape {array.shape} and {files[0]} {arrays[0].shape}; give image_size, which "
                "resizes every image"
            )
    warn_of_left_out(root / split, left_out, len(files))
    if missing := [name for name in classes if name not in folders]:
        log.warning("%s has no images of the classes %s, so they are not measured", root / split, listed(missing))
    mean, std = CHANNEL_STATISTICS["folder"]
    paths = tuple(map(str, files))
    return Dataset(f"folder:{path}", split, np.stack(arrays), np.array(labels, np.int64), classes, mean, std, paths)


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
        with ThreadPoolExecutor() as pool:
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
