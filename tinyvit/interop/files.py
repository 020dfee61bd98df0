"""Read weights from files of others, one array at a time: safetensors, in one file or in several, and NumPy's npz.

Arrays are mapped into memory and copied only when they are asked for, so that loading needs little more memory than
the model has itself. Pickles are never opened, because they can run code.
"""

import json
import math
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.files import MAX_UNPACKED, missing, open_file, parse_json, read_text
from ..checkpoint import describe_foreign
from ..errors import CheckpointError

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CONVERT = (
    "a pickle can run code and is never opened; convert it where it comes from: "
    "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
)
Load = Callable[[], NDArray[Any]]


class Weights(Mapping[str, Load]):
    """The arrays of one or more files: names to functions that read them, with shapes known before reading.

    Attributes
    ----------
    source : the file or folder, for messages.
    shapes : the shape of each array.
    """

    def __init__(self, source: Path, loads: dict[str, Load], shapes: dict[str, tuple[int, ...]]) -> None:
        self.source, self._loads, self.shapes = source, loads, shapes

    def __getitem__(self, name: str) -> Load:
        return self._loads[name]

    def __iter__(self) -> Any:
        return iter(self._loads)

    def __len__(self) -> int:
        return len(self._loads)


def open_weights(path: Path) -> Weights:
    """Open the weights at `path`: a folder with safetensors, a safetensors file or its index, or an npz file.

    Raises
    ------
    CheckpointError
        If there are none, or they are damaged, incomplete, or in a format that is not read, such as a pickle.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError(missing(path))
    if path.suffix in _PICKLES:
        raise CheckpointError(f"{path} is not read: {CONVERT}")
    if path.name.endswith(".index.json"):
        return _open_index(path)
    if path.suffix == ".npz":
        return _open_npz(path)
    return _open_safetensors(path)


def _open_folder(folder: Path) -> Weights:
    for name, opener in ((WEIGHTS, _open_safetensors), (INDEX, _open_index)):
        if (folder / name).is_file():
            return opener(folder / name)
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return _open_safetensors(others[0])
    if others:
        names = ", ".join(path.name for path in others)
        raise CheckpointError(f"{folder} holds {names} and no {WEIGHTS} or {INDEX}; give one of the files")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(f"{folder} holds no {WEIGHTS}, only {pickles[0]}: {CONVERT}")
    raise CheckpointError(f"{folder} holds no weights: there is no {WEIGHTS}")


def _open_safetensors(path: Path) -> Weights:
    import ml_dtypes  # noqa: F401 (makes bfloat16 known to NumPy)
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(str(path), framework="np")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}): check the path") from error
    except (SafetensorError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} {describe_foreign(path)}") from error

    def load(name: str) -> NDArray[Any]:
        try:
            return file.get_tensor(name)
        except (SafetensorError, OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: {name} cannot be read ({error}); store it as float32") from error

    return Weights(path, {name: partial(load, name) for name in shapes}, shapes)


def _open_index(path: Path) -> Weights:
    """Open all files that an index of Hugging Face's names, {"weight_map": {name: file}}."""
    content = read_json(path)
    table = content.get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError(f"{path} is no index of weights: it has no table 'weight_map'")
    files = sorted(set(table.values()))
    if foreign := [name for name in files if Path(name).name != name]:
        raise CheckpointError(f"{path} names {foreign[0]!r}; the files must lie in the same folder")
    if missing := [name for name in files if not (path.parent / name).is_file()]:
        raise CheckpointError(f"{path} names files that are not there: {', '.join(missing)}; copy the whole folder")
    loads: dict[str, Load] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in files:
        part = open_weights(path.parent / name)
        loads |= part
        shapes |= part.shapes
    if lacking := sorted(table.keys() - loads.keys()):
        raise CheckpointError(f"{path} names arrays that its files lack: {', '.join(lacking[:5])}")
    return Weights(path, loads, shapes)


def _open_npz(path: Path) -> Weights:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > MAX_UNPACKED * max(path.stat().st_size, 1 << 20):
            raise CheckpointError(f"{path} unpacks to {unpacked:,} bytes, far more than its own size; it is not read")
        with open_file(path) as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise CheckpointError(f"{path} is no npz file of plain arrays, or is damaged ({error})") from error
    return Weights(
        path,
        {name: partial(arrays.__getitem__, name) for name in arrays},
        {name: array.shape for name, array in arrays.items()},
    )


def as_float32(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """Widen an array of weights to float32. Raises CheckpointError if it is not of real, finite numbers."""
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise CheckpointError(f"{name} has the dtype {array.dtype}; weights must be floating-point numbers")
    with np.errstate(over="ignore"):
        wide = array.astype(np.float32, copy=False)
    if not math.isfinite(float(np.add.reduce(wide, axis=None, dtype=np.float64))) and not np.isfinite(wide).all():
        raise CheckpointError(f"{name} holds values that are not finite; restore the file from a copy")
    return wide


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file whose content is an object. Raises CheckpointError."""
    try:
        content = parse_json(read_text(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; it must be an object {{...}}")
    return content
