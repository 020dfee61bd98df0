"""Read an image file as the pixels that a model takes.

These are the only rules by which images are converted:

Pixels
    1-bit, greyscale and 8-bit colour values are kept; palettes are resolved; 16-bit greyscale is divided by 257; CMYK,
    YCbCr and similar modes become RGB; floating-point and 32-bit images are refused, and 16-bit values that lie so
    close together that they would become equal.
Transparency
    A transparent image is laid over black, the background of the grey data sets. It is refused if nothing is seen
    there: if it is black ink on a transparent ground, for example, or wholly transparent.
Channels
    Colour becomes grey by ITU-R 601 (0.299 R + 0.587 G + 0.114 B); grey becomes colour by repetition.
Size
    The largest centred square is cut out and resized, bilinear and antialiased; an image of the right size is not
    changed. A pretrained model has a rule of its own, see `preprocessing`. The orientation tag of a camera is obeyed.
    Of an animation, the first frame is read.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..backend.files import MAX_IMAGE_BYTES, MAX_PIXELS, missing, open_file
from ..errors import DataError
from .preprocessing import Resize

if TYPE_CHECKING:
    from PIL import Image

# Pillow's names of the formats of `image_files.IMAGE_SUFFIXES`. It knows others that start programs (EPS starts
# Ghostscript), or that few people have looked at.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF")
Size = int | tuple[int, int] | None  # a side, or height and width in pixels; None keeps those of an image
_SIXTEEN_BITS_IN_32 = ("PPM", "PNG")  # those whose 16-bit values Pillow may give as 32-bit integers
_FAINT = 16  # the largest difference of values, of 255, that does not show a shape
_opening = threading.Lock()  # the filters of warnings belong to all threads


@contextmanager
def _warnings_are_errors() -> Iterator[None]:
    """Have Pillow refuse, in this block, what it only warns about: damage that it can guess its way around."""
    with _opening, warnings.catch_warnings():
        for category in (UserWarning, RuntimeWarning):
            warnings.filterwarnings("error", category=category, module=r"PIL\b")
        yield


@contextmanager
def open_image(path: str | Path) -> Iterator["Image.Image"]:
    """Open an image file, whatever it is needed for; all of the package opens images here.

    Raises
    ------
    DataError
        If the file is missing, not a regular file, not an image in one of `FORMATS`, damaged or larger than images are
        allowed to be, also if this shows only within the block.
    """
    from PIL import Image

    try:
        with open_file(path, MAX_IMAGE_BYTES) as file:
            with _warnings_are_errors():
                image = Image.open(file, formats=FORMATS)
            with image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(_too_large(path, f"{image.width} x {image.height}"))
                yield image
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(missing(path)) from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is not a file but a folder; name an image in it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large(path, "far too many")) from error
    except (Image.UnidentifiedImageError, KeyError) as error:  # KeyError: this Pillow does not know one of them
        raise DataError(f"{path} cannot be read as an image: it is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # on damaged files, decoders raise exceptions of any type, even SyntaxError
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read as an image: {reason}") from error


def is_grey(path: str | Path) -> bool:
    """Return whether a file holds a grey image, by its header; also for a file that cannot be read as an image."""
    try:
        with open_image(path) as image:
            return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    except DataError:
        return True


def read_image(path: str | Path, channels: int, size: Size = None, resize: Resize | None = None) -> NDArray[np.uint8]:
    """Read an image file.

    Parameters
    ----------
    path : str or Path
    channels : {1, 3}
    size : int or (height, width), optional
        Height and width of the result in pixels; None keeps those of the file.
    resize : Resize, optional
        The rule by which the image is brought to `size`; by default that of this module.

    Returns
    -------
    uint8 (C, H, W)

    Raises
    ------
    DataError
        If the file is missing, not an image, truncated, or has more than 50 million pixels.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; an image has 1 (grey) or 3 (RGB)")
    return _fitted(converted(path, channels), channels, size, resize)


def fitted(pixels: NDArray[np.uint8], channels: int, size: tuple[int, int], resize: Resize) -> NDArray[np.uint8]:
    """Bring the pixels of an image, uint8 (C, H, W), to another number of channels and `size` (height, width)."""
    from PIL import Image

    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    array = np.asarray(resize(picture.convert("L" if channels == 1 else "RGB"), size))
    return np.ascontiguousarray(array[None] if channels == 1 else array.transpose(2, 0, 1))


def converted(path: str | Path, channels: int) -> "Image.Image":
    """Open an image file, upright and with 8-bit pixels of 1 or 3 channels, in its own size. Raises DataError."""
    from PIL import ImageOps

    with open_image(path) as image:
        image.load()
        with _warnings_are_errors():
            image.getexif()
        kind = image.format  # a transposed image has none
        return _to_mode(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB", kind)


def pixels_of(
    image: "str | Path | NDArray | Image.Image", channels: int, size: Size = None, resize: Resize | None = None
) -> NDArray[np.uint8]:
    """Return the pixels of a file, an array or a Pillow image, by the rules of `read_image`, uint8 (C, H, W).

    An array is uint8, or floating from 0 to 1, with the shape (H, W), (H, W, C) or (C, H, W), and has 1, 3 or 4 (RGBA)
    channels. Raises DataError.
    """
    from PIL import Image, ImageOps

    if isinstance(image, str | Path):
        return read_image(image, channels, size, resize)
    given = _image_of(image) if isinstance(image, np.ndarray) else image
    if not isinstance(given, Image.Image):
        what = "one number" if isinstance(image, np.generic | int | float) else type(image).__name__
        raise DataError(
            f"an image is {what}; give the path of a file, an array with two or three axes, or a Pillow image"
        )
    try:
        pixels = _to_mode(ImageOps.exif_transpose(given), "L" if channels == 1 else "RGB", given.format)
    except (ValueError, OSError) as error:
        raise DataError(f"the image cannot be used: {error}") from error
    return _fitted(pixels, channels, size, resize)


def _image_of(array: NDArray) -> "Image.Image":
    from PIL import Image

    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)) or not array.size:
        raise DataError(f"an image has the shape {array.shape}; it must be (H, W), (H, W, C) or (C, H, W)")
    if np.issubdtype(array.dtype, np.floating) and array.min() >= 0 and array.max() <= 1:
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(
            f"an image is {array.dtype} with values from {array.min()} to {array.max()}; it must be uint8, or floating "
            "from 0 to 1"
        )
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array))


def _fitted(pixels: "Image.Image", channels: int, size: Size, resize: Resize | None) -> NDArray[np.uint8]:
    """Bring an image to a size by the rule `resize`, or by cutting out and resizing the largest centred part of it."""
    from PIL import Image, ImageOps

    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if resize is not None:
            pixels = resize(pixels, (height, width))
        elif pixels.size != (width, height):
            pixels = ImageOps.fit(pixels, (width, height), Image.Resampling.BILINEAR)
    array = np.asarray(pixels)
    return np.ascontiguousarray(array[None] if channels == 1 else array.transpose(2, 0, 1))


def _too_large(path: str | Path, found: str) -> str:
    return f"{path} has {found} pixels, more than {MAX_PIXELS:,}; make it smaller first"


def _to_mode(image: "Image.Image", mode: str, kind: str | None = None) -> "Image.Image":
    """Convert any image, of a file of a `kind` such as "PNG", to 8-bit grey ("L") or colour ("RGB")."""
    if image.mode.startswith("F") or (image.mode == "I" and kind not in _SIXTEEN_BITS_IN_32):
        raise ValueError(f"its pixels ({image.mode}) are not of 8 or 16 bits; save it as an 8-bit PNG")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = _over_black(image.convert("RGBA"))
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return image.convert(mode)


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """Divide 16-bit grey values by 257; a value that stands for transparency becomes an alpha channel."""
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError(f"its pixels ({image.mode}) are not of 8 or 16 bits; save it as an 8-bit PNG")
    grey = (values // 257).astype(np.uint8)
    if values.min() < values.max() and grey.min() == grey.max():
        raise ValueError(
            f"its 16-bit values, from {values.min()} to {values.max()} of 65535, are one value of 8 bits; "
            "save it as an 8-bit PNG"
        )
    if "transparency" not in image.info:
        return Image.fromarray(grey)
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])


def _over_black(image: "Image.Image") -> "Image.Image":
    """Lay an RGBA image over black, unless nothing of it would be seen there."""
    from PIL import Image

    opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
    opaque.alpha_composite(image)
    colours = opaque.convert("RGB")
    contrast = np.ptp(np.asarray(colours), axis=(0, 1)).max()
    alpha = np.asarray(image)[..., 3]
    if alpha.max() == 0 or (np.ptp(alpha) >= 128 and contrast <= _FAINT):
        raise ValueError(
            "its shapes are dark on a transparent ground, which is laid over black, so that nothing is seen; "
            "save it without transparency, on a ground of another colour"
        )
    return colours
