"""The files of the data sets, the mirrors that serve them, and the folders in which they are looked for.

A data set is looked for in the folder ``$TINYVIT_DATA/<name>/``, then in the user's cache folder, then on the mirrors
in `SOURCES`. If the environment variable ``TINYVIT_MIRROR`` names a base URL, ``<base>/<name>/<file>`` is tried before
those mirrors: a web server over a ``TINYVIT_DATA`` folder will do.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ..backend.words import did_you_mean
from ..errors import DataError
from .formats import SUFFIXES


@dataclass(frozen=True)
class RemoteFile:
    """One file as the mirrors serve it; `parts` are the names of the data files in it, without .gz or .xz."""

    name: str
    size: int  # bytes
    sha256: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """The mirrors of a data set, as base URLs, and its files."""

    mirrors: tuple[str, ...]
    files: tuple[RemoteFile, ...]


def _idx_files(*sizes_and_sums: tuple[int, str]) -> tuple[RemoteFile, ...]:
    """Return the four files of MNIST, or of a data set in its format."""
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        RemoteFile(f"{kind}-ubyte.gz", size, sha256, (f"{kind}-ubyte",))
        for kind, (size, sha256) in zip(kinds, sizes_and_sums, strict=True)
    )


# These files also have the MD5 sums that the authors publish (for MNIST: those that torchvision knows).
SOURCES = {
    "mnist": Source(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        _idx_files(
            (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "fashion-mnist": Source(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        _idx_files(
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
    "cifar-10": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        (
            RemoteFile(
                "cifar-10-binary.tar.gz",
                170052171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
            ),
        ),
    ),
    "cifar-100": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        (
            RemoteFile(
                "cifar-100-binary.tar.gz",
                168513733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                ("train.bin", "test.bin"),
            ),
        ),
    ),
    "easy-vqa": Source(
        (
            "https://files.pythonhosted.org/packages/32/e7/dbdd733ea110ff04c8b0b7ce7d49acce06f1dd18ed304d9f8f9b3f26c1a3/",
        ),
        (
            RemoteFile(
                "easy_vqa-1.0-py3-none-any.whl",
                3215672,
                "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
                ("answers.txt", "train/questions.json", "test/questions.json"),
            ),
        ),
    ),
}
GENERATED = (  # from a seed, when they are loaded
    *("scenes-questions", "scenes-captions", "scenes-shapes", "scenes-pairs", "canvas", "reverse", "motion", "chirps"),
)
DATASET_NAMES = ("digits", *SOURCES, *GENERATED)


def check_name(name: str) -> None:
    """Raise DataError, with the most similar valid name, for a data set that does not exist."""
    if name not in DATASET_NAMES:
        known = [f"folder:{name}"] if Path(name).is_dir() else DATASET_NAMES
        near = did_you_mean(name, known, cutoff=0.4)
        raise DataError(
            f"there is no data set {name!r}{near}; available: {', '.join(DATASET_NAMES)}, "
            "and for your own data folder:PATH (images), sounds:PATH (.wav), csv:PATH (texts) or coco:PATH (masks and "
            "boxes)"
        )


def find(name: str) -> Path | None:
    """Return the first folder that holds all files of a data set, or None. Contents are not verified."""
    folders = (root / name for root in data_roots())
    return next((folder for folder in folders if is_complete(folder, SOURCES[name])), None)


def find_part(folder: Path, part: str) -> Path | None:
    """Return the file in `folder` that holds a part, plain or compressed, or None."""
    candidates = (folder / f"{part}{suffix}" for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def is_complete(folder: Path, source: Source) -> bool:
    """Return whether `folder` has every file, either as the mirrors serve it or as its parts."""
    return not missing_names(folder, source)


def missing_names(folder: Path, source: Source) -> list[str]:
    """Return the names of the missing files; if only some parts of a file are missing, the names of these parts."""
    names: list[str] = []
    for file in source.files:
        parts = [part for part in file.parts if not find_part(folder, part)]
        if parts and not (folder / file.name).is_file():
            names += parts if len(parts) < len(file.parts) else [file.name]
    return names


def data_roots() -> list[Path]:
    """Return the folders in which data sets are looked for: that of TINYVIT_DATA, then the cache, if there are such."""
    roots = []
    if given := os.environ.get("TINYVIT_DATA"):
        if not Path(given).is_dir():
            raise DataError(f"TINYVIT_DATA={given} is not a folder; create it, or unset TINYVIT_DATA")
        roots.append(Path(given))
    return [*roots, *(cache / "tinyvit" for cache in [_users_cache()] if cache is not None)]


def cache_root() -> Path:
    """Return the folder that downloads are written to. Raises DataError if this user has no home folder."""
    if (cache := _users_cache()) is None:
        raise DataError(
            "this user has no home folder to keep data in: set TINYVIT_DATA to a folder that has the data sets, "
            "or XDG_CACHE_HOME to one into which they can be downloaded"
        )
    return cache / "tinyvit"


def _users_cache() -> Path | None:
    """Return the folder in which this user's programs keep what they can get again; None without a home folder."""
    if (xdg := os.environ.get("XDG_CACHE_HOME")) and os.path.isabs(xdg):
        return Path(xdg)
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    except RuntimeError:  # HOME is not set, and the system does not know this user
        return None
