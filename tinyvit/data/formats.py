"""Read the file formats of the classic data sets: IDX (MNIST) and the CIFAR binary version, compressed or not.

A reader is given the size of the content and returns exactly that content. Anything else (an HTML page, a truncated
download, a flipped bit) raises a DataError that names the file, the problem and the way out.
"""

import gzip
import math
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ..backend.files import open_file
from ..errors import DataError

try:
    import lzma
except ImportError:  # Python can be built without it
    lzma = None  # type: ignore[assignment]

SUFFIXES = ("", ".gz", ".xz")
CIFAR_IMAGE = (3, 32, 32)
_CIFAR_PIXELS = math.prod(CIFAR_IMAGE)
_HTML = (b"<!doctype", b"<html", b"<head", b"<?xml")
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, *((lzma.LZMAError,) if lzma else ()))


def read_idx(path: Path, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes.

    Parameters
    ----------
    path : Path
        Plain, gzip or xz, recognized by its first bytes, not by its name.
    name : str
        The data set that the file belongs to, for the error message.
    shape : tuple of int
        The shape that the header must state and the content must have.

    Returns
    -------
    uint8, of that shape

    Raises
    ------
    DataError
        If the file is anything else.
    """
    # The header, see http://yann.lecun.com/exdb/mnist/: two zero bytes, 8 for unsigned bytes, the number of axes, then
    # the big-endian length of each axis.
    magic = bytes((0, 0, 8, len(shape)))
    header = 4 + 4 * len(shape)
    data = _read(path, name, header + math.prod(shape))
    if data[:4] != magic:
        raise damaged(path, name, f"begins with the bytes {data[:4].hex(' ')}, not with {magic.hex(' ')}")
    if len(data) < header:
        raise damaged(path, name, f"ends inside its header, after {len(data)} of {header} bytes")
    found = tuple(int(axis) for axis in np.frombuffer(data, ">u4", len(shape), offset=4))
    if found != shape:
        raise damaged(path, name, f"announces the shape {found}, not {shape}")
    _check_length(data, path, name, header + math.prod(shape))
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_cifar(path: Path, name: str, records: int, label_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read one file of the CIFAR binary version.

    A record is `label_bytes` labels (CIFAR-100 has the coarse one before the fine one) and then 3072 pixels.

    Parameters
    ----------
    path : Path
        Plain, gzip or xz, recognized by its first bytes, not by its name.
    name : str
        The data set that the file belongs to, for the error message.
    records : int
        The number of records that the file must hold.
    label_bytes : int
        1 for CIFAR-10, 2 for CIFAR-100.

    Returns
    -------
    images : uint8 (records, 3, 32, 32)
        A view of the file's bytes, not contiguous.
    labels : uint8 (records,)
        The last label of each record.

    Raises
    ------
    DataError
        If the file is anything else.
    """
    size = records * (label_bytes + _CIFAR_PIXELS)
    data = _read(path, name, size)
    _check_length(data, path, name, size)
    return _split_records(data, label_bytes)


def read_cifar_archive(
    path: Path, name: str, members: Sequence[str], records: int, label_bytes: int
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Read some members of the official ``.tar.gz`` as `read_cifar` reads files, without unpacking it to disk."""
    size = records * (label_bytes + _CIFAR_PIXELS)
    found: dict[str, bytes] = {}
    left = max(16 * size, 1 << 20)  # bytes of the archive, which also holds the other split
    with _reading(path, name) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if (left := left - member.size) < 0:
                    raise damaged(path, name, "holds more than is plausible")
                base = Path(member.name).name
                content = archive.extractfile(member) if base in members else None
                if content is not None:
                    found[base] = content.read(size + 1)
        # The checksum of a gzip stream is compared only when its end is read.
        while read := stream.read(1 << 20):
            if (left := left - len(read)) < 0:
                raise damaged(path, name, "holds more than is plausible")
    for wanted in members:
        if wanted not in found:
            raise damaged(path, name, f"does not contain {wanted}")
        _check_length(found[wanted], f"{path}, {wanted},", name, size)
    return [_split_records(found[wanted], label_bytes) for wanted in members]


def damaged(path: Path | str, name: str, found: str) -> DataError:
    """Return the error for a data file with wrong content; `found` continues the sentence "PATH ..."."""
    return DataError(f"{path} {found}; delete it and run `tinyvit data fetch {name}`")


def _split_records(data: bytes, label_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    records = np.frombuffer(data, np.uint8).reshape(-1, label_bytes + _CIFAR_PIXELS)
    return records[:, label_bytes:].reshape(-1, *CIFAR_IMAGE), records[:, label_bytes - 1]


def _check_length(data: bytes, path: Path | str, name: str, size: int) -> None:
    if len(data) < size:
        raise damaged(path, name, f"ends after {len(data):,} of {size:,} bytes")
    if len(data) > size:
        raise damaged(path, name, f"holds more than the {size:,} bytes expected")


def _read(path: Path, name: str, size: int) -> bytes:
    """Read and decompress up to `size` bytes and one more, which shows that a file is too long."""
    with _reading(path, name) as stream:
        return stream.read(size + 1)


@contextmanager
def _reading(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file for its decompressed bytes, whatever its compression; every failure becomes a DataError."""
    try:
        with open_file(path) as file:
            head = file.read(512)
            if not head:
                raise damaged(path, name, "is empty")
            if head.lstrip().lower().startswith(_HTML):
                raise damaged(path, name, "is an HTML page, not data")
            file.seek(0)
            if head.startswith(b"\x1f\x8b"):
                with gzip.GzipFile(fileobj=file) as stream:
                    yield cast(BinaryIO, stream)
            elif head.startswith(b"\xfd7zXZ\x00"):
                if lzma is None:
                    raise DataError(f"{path} is compressed with xz, which this Python cannot read; give it unpacked")
                with lzma.LZMAFile(file) as stream:
                    yield cast(BinaryIO, stream)
            else:
                yield file
    except _DAMAGE as error:
        raise damaged(path, name, f"is damaged ({error})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
