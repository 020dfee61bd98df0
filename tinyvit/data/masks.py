"""Folders of images with a mask for each.

The layout is ``PATH/<split>/images/<name>`` and ``PATH/<split>/masks/<name>.png``, for the splits train and test. The
values of a mask are the numbers of classes, 255 for pixels that are to be left out. ``PATH/classes.txt`` has a name on
each line, from number 0, the background.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.files import read_text
from ..errors import DataError
from .datasets import CHANNEL_STATISTICS
from .dense import IGNORED, MaskDataset, fit_labels
from .image_files import find_images, listed, read_files, warn_of_left_out
from .images import open_image, read_image

_ORIENTATION = 274  # the tag of Exif
LAYOUT = "PATH/classes.txt, PATH/train/images/<name>, PATH/train/masks/<name>.png, PATH/test/..."


def mask_folder(path: str | Path, split: str, image_size: int | None = None) -> MaskDataset:
    """Load a data set of image files with masks.

    Parameters
    ----------
    path : str or Path
    split : {"train", "test"}
    image_size : int, optional
        Height and width in pixels, to which images and masks are cut and resized; None if all have the same size.

    Raises
    ------
    DataError
        If a folder or a mask is missing or cannot be read, if a mask has another size than its image or a value that is
        no class, or if the sizes of images differ.
    """
    root = Path(path)
    classes = read_classes(root / "classes.txt")
    folder = root / split / "images"
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; the layout is {LAYOUT}")
    found = find_images(folder)
    files, images, broken = read_files(found.images, lambda file: read_image(file, 3, image_size))
    if not files:
        raise DataError(f"{folder} holds no images that can be read")
    warn_of_left_out(folder, [*broken, *found.left_out], len(files), split=split)
    masks = []
    for file in files:
        mask_path = (root / split / "masks" / file.relative_to(folder)).with_suffix(".png")
        masks.append(fit_labels(read_mask(mask_path, classes, file), image_size))
    check_sizes(files, images)
    mean, std = CHANNEL_STATISTICS["folder"]
    return MaskDataset(
        name=f"folder:{path}",
        split=split,
        images=np.stack(images),
        masks=np.stack(masks),
        classes=classes,
        mean=mean,
        std=std,
        kind_of=np.zeros(len(files), np.int64),
        files=tuple(map(str, files)),
    )


def read_classes(path: Path) -> tuple[str, ...]:
    """Return the names in a file with one on each line. Raises DataError."""
    try:
        names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path} cannot be read ({reason}); write the name of a class on each line, first that of the background"
        ) from error
    if not 2 <= len(names) <= IGNORED or len(set(names)) < len(names):
        raise DataError(
            f"{path} has {len(names)} names, {len(set(names))} of them different; give 2 to 255, all different"
        )
    return names


def read_mask(path: Path, classes: tuple[str, ...], image: Path) -> NDArray[np.uint8]:
    """Read the mask of an image file: the class of every pixel, (H, W). Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; it must be the mask of {image}: the layout is {LAYOUT}")
    with open_image(path) as opened, open_image(image) as pictured:
        if opened.mode not in ("1", "L", "P"):
            raise DataError(
                f"{path} has pixels of the mode {opened.mode}; a mask is a grey or indexed PNG whose values are the "
                f"numbers of classes, from 0 to {len(classes) - 1}, or {IGNORED}"
            )
        if opened.size != size_as_stored(image, pictured):
            sizes = [" x ".join(map(str, file.size)) for file in (opened, pictured)]
            raise DataError(f"{path} has {sizes[0]} pixels, and its image {image} has {sizes[1]}")
        mask = np.asarray(opened).astype(np.uint8)
    strange = sorted(set(np.unique(mask).tolist()) - {*range(len(classes)), IGNORED})
    if strange:
        raise DataError(
            f"{path} has the values {listed([str(value) for value in strange])}; there are {len(classes)} classes "
            f"(0 to {len(classes) - 1}), and {IGNORED} for pixels that are left out"
        )
    return mask


def size_as_stored(path: Path, opened: Any) -> tuple[int, int]:
    """Return the width and height of an opened image. Raises DataError if it is to be shown rotated or mirrored.

    Pixels are then read in another order than they are stored in, and it is not known which order a mask follows.
    """
    if (orientation := opened.getexif().get(_ORIENTATION, 1)) != 1:
        raise DataError(f"{path} has the orientation tag {orientation}; save it upright, as its masks and boxes are")
    return opened.size


def check_sizes(files: list[Path], images: list[NDArray[np.uint8]]) -> None:
    """Raise DataError unless all images have the same size."""
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"{file} has the shape {image.shape} and {files[0]} {images[0].shape}; set data.image_size, which "
                "resizes every image"
            )
