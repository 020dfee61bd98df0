"""Image data sets: their samples and batches, their classes and statistics, and parts of them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .disk import DiskImages, digest
from .moving import MOTIONS, SWEEPS
from .preprocessing import Resize

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
        Probabilities, float32 (B, K), if images of K classes are mixed, see `tinyvit.data.Mix`.
    index : int
        The number of the batch in the epoch, from 0.
    texts : int64 (B, N), optional
        Token ids, padded with `<pad>`; None if the data set has no texts.
    image_of : int64 (B,), optional
        The index into `images` of each sample's image, if samples share images; None if each has its own, in order.
    drawn : tuple of arrays
        What else the loss of a task needs: random numbers, boxes, or what a teacher says; see
        `tinyvit.tasks.Task.with_draws`.
    """

    images: NDArray[np.float32] | None
    labels: Any
    index: int
    texts: NDArray[np.int64] | None = None
    image_of: NDArray[np.int64] | None = None
    drawn: tuple[Any, ...] = ()

    @property
    def image_of_each(self) -> NDArray[np.float32] | None:
        """The image of each sample (B, C, H, W), repeated where samples share it; None if there are no images."""
        return self.images if self.images is None or self.image_of is None else self.images[self.image_of]

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.labels)


@dataclass(frozen=True)
class ShardedBatch:
    """A batch that is divided into shards, as far as one process needs it.

    Attributes
    ----------
    parts : batches by the number of the shard. Shards without a sample are left out.
    count : the number of samples in all shards, also those of other processes.
    index : the number of the batch in the epoch, from 0.
    """

    parts: dict[int, Batch]
    count: int
    index: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set.

    Attributes
    ----------
    name, split : str
    images : uint8 (n, C, H, W), or (n, T, C, H, W) of videos
        An array, or `DiskImages`, which are read as they are needed.
    labels : int64 (n,)
        Indices into `classes`.
    classes : tuple of str
    mean, std : tuple of float
        Of each channel, for pixels in 0..1; the same numbers for both splits.
    files : tuple of str
        The file of each image, if each has its own; else empty.
    resize : Resize, optional
        The rule by which the images were resized, if not by that of `tinyvit.data.images`.
    sound : (rate, seconds, converts)
        If the images are spectrograms of sounds, see `tinyvit.data.waves.WaveReader`; else empty.
    """

    name: str
    split: str
    images: Any
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: tuple[str, ...] = ()
    resize: Resize | None = None
    sound: tuple[Any, ...] = ()

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

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape[1:]))
        return f"Dataset({self.name}, {self.split}: {len(self):,} images of {shape}, {len(self.classes)} classes)"

    def first(self, count: int) -> "Dataset":
        """Return the data set reduced to its first `count` images."""
        return self.chosen(np.arange(min(count, len(self))))

    def chosen(self, indices: NDArray[np.int64]) -> "Dataset":
        """Return the data set reduced to the images with these indices."""
        files = tuple(self.files[i] for i in indices) if self.files else ()
        images = self.images.chosen(indices) if isinstance(self.images, DiskImages) else self.images[indices]
        return replace(self, images=images, labels=self.labels[indices], files=files)

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
        on_disk = isinstance(self.images, DiskImages)
        return checksum(self.images.digests if on_disk else self.images, self.labels)

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


def equal_images(images: Any, other: Any) -> list[tuple[int, int]]:
    """Return the pairs of indices of equal images in `images` (n, C, H, W) and in `other`, one for each of `other`."""
    place = {key: i for i, key in enumerate(digests_of(images))}
    return [(place[key], i) for i, key in enumerate(digests_of(other)) if key in place]


def digests_of(images: Any) -> list[bytes]:
    """Return a checksum of each image."""
    if isinstance(images, DiskImages):
        return [row.tobytes() for row in images.digests]
    return [digest(image).tobytes() for image in images]


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


def first_of_each(groups: NDArray[np.int64], order: Sequence[int] | NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Choose `count` elements of `groups` (n,), in the given order; each group has its share, and keeps one element.

    Shares are rounded by their largest remainders. Fewer are chosen where groups are too small.
    """
    sizes, count = np.bincount(groups), min(count, len(groups))
    shares = count * sizes / max(1, len(groups))
    most = np.maximum(sizes - 1, 0)
    quota = np.minimum(np.floor(shares).astype(np.int64), most)
    for group in np.argsort(quota - shares, kind="stable"):
        if quota.sum() < count and quota[group] < most[group]:
            quota[group] += 1
    chosen = np.zeros(len(groups), np.bool_)
    for i in order:
        if quota[groups[i]] > 0:
            chosen[i] = True
            quota[groups[i]] -= 1
    return chosen
